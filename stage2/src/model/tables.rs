//! Table memory that checks its users.

use crate::table::{ENTRIES, TableMemory};
use addr::Hpa;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::vec::Vec;

/// One entry that was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// The table.
    pub table: Hpa,
    /// The slot.
    pub index: usize,
    /// What was there.
    pub old: u64,
    /// What is there now.
    pub new: u64,
}

#[derive(Debug)]
struct State {
    pages: BTreeMap<u64, Vec<u64>>,
    free: Vec<u64>,
    next: u64,
    limit: usize,
    log: Option<Vec<Write>>,
}

/// Pages from [`ModelTables::BASE`] on. Addresses are not reused unless asked: a page that is used after
/// it was freed is then always noticed.
#[derive(Debug)]
pub struct ModelTables {
    state: Mutex<State>,
    reuse: bool,
}

impl Default for ModelTables {
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

impl ModelTables {
    /// Address of the first page.
    pub const BASE: Hpa = Hpa::new(0x80_0000_0000);

    /// At most `limit` pages at a time.
    pub fn new(limit: usize) -> Self {
        let state =
            State { pages: BTreeMap::new(), free: Vec::new(), next: Self::BASE.raw(), limit, log: None };
        Self { state: Mutex::new(state), reuse: false }
    }
    /// As [`ModelTables::new`], but a freed address is the next to be given out.
    pub fn reusing(limit: usize) -> Self {
        Self { reuse: true, ..Self::new(limit) }
    }
    /// Pages in use.
    pub fn used(&self) -> usize {
        self.state.lock().unwrap().pages.len()
    }
    /// Changes the limit.
    pub fn set_limit(&self, limit: usize) {
        self.state.lock().unwrap().limit = limit;
    }
    /// Starts (afresh) to record writes.
    pub fn record(&self) {
        self.state.lock().unwrap().log = Some(Vec::new());
    }
    /// The writes since [`ModelTables::record`].
    pub fn recorded(&self) -> Vec<Write> {
        self.state.lock().unwrap().log.take().unwrap_or_default()
    }
    /// Undoes writes, last first: shows the tables as they were at a moment of a recorded change.
    pub fn undo(&self, writes: &[Write]) {
        let mut state = self.state.lock().unwrap();
        for write in writes.iter().rev() {
            state.pages.get_mut(&write.table.raw()).expect("a page in use")[write.index] = write.old;
        }
    }
    /// Does one write again.
    pub fn redo(&self, write: &Write) {
        self.entry(write.table, write.index, |entry| *entry = write.new);
    }

    fn entry<R>(&self, table: Hpa, index: usize, f: impl FnOnce(&mut u64) -> R) -> R {
        let mut state = self.state.lock().unwrap();
        let page = state.pages.get_mut(&table.raw());
        let page = page.unwrap_or_else(|| panic!("table page {table:?} is not in use"));
        f(&mut page[index])
    }
    fn replace(&self, table: Hpa, index: usize, new: u64) {
        let old = self.entry(table, index, |entry| core::mem::replace(entry, new));
        if let Some(log) = &mut self.state.lock().unwrap().log {
            log.push(Write { table, index, old, new });
        }
    }
}

impl TableMemory for ModelTables {
    fn alloc(&self) -> Option<Hpa> {
        let mut state = self.state.lock().unwrap();
        if state.pages.len() >= state.limit {
            return None;
        }
        let raw = match state.free.pop().filter(|_| self.reuse) {
            Some(raw) => raw,
            None => {
                state.next += 0x1000;
                state.next - 0x1000
            }
        };
        state.pages.insert(raw, std::vec![0; ENTRIES]);
        Some(Hpa::new(raw))
    }
    fn free(&self, table: Hpa) {
        let mut state = self.state.lock().unwrap();
        assert!(state.pages.remove(&table.raw()).is_some(), "{table:?} freed, but not in use");
        state.free.push(table.raw());
    }
    fn read(&self, table: Hpa, index: usize) -> u64 {
        self.entry(table, index, |entry| *entry)
    }
    fn write(&self, table: Hpa, index: usize, entry: u64) {
        self.replace(table, index, entry);
    }
    fn compare_exchange(&self, table: Hpa, index: usize, old: u64, new: u64) -> Result<(), u64> {
        match self.read(table, index) {
            found if found == old => {
                self.replace(table, index, new);
                Ok(())
            }
            found => Err(found),
        }
    }
}
