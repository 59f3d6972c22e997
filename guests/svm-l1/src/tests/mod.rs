//! The cases, by family.

mod checks;
mod events;
mod faults;
mod intercepts;
mod modes;
mod nested_paging;
mod permission;
mod state;

use crate::runner::Runner;

/// Run them all.
pub fn run(r: &mut Runner<'_>) {
    faults::run(r);
    checks::run(r);
    intercepts::run(r);
    permission::run(r);
    events::run(r);
    nested_paging::run(r);
    modes::run(r);
    state::run(r);
}
