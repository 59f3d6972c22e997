//! Guest accesses: the MMIO page and the MSRs, on one set of registers.
//!
//! APM vol. 2, "APIC Registers" (access rules of the page), "x2APIC Register Address Space" (of the MSRs).

use super::dest::Mode;
use super::icr::{ICR_LOW_BITS, Ipi};
use super::lapic::{ESR_ILLEGAL_REGISTER, ESR_SEND_ILLEGAL, SVR_BITS, SVR_ENABLE, VERSION, Vlapic};
use super::lvt::{LVT_MASKED, Lvt};
use super::reg::{MSR_APIC_BASE, MSR_TSC_DEADLINE, MSR_X2APIC_FIRST, MSR_X2APIC_LAST, Reg, x2_rule};
use super::shared::FIRST_LEGAL_VECTOR;
use super::timer::{TimeSource, TimerMode};
use super::{Shorthand, dest::x2apic_logical_id};

/// The access causes #GP(0).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gp;

/// What a write asks of the world outside of the APIC. Whatever it is, pending interrupts must be looked at
/// again before the guest runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Effect {
    /// Nothing.
    None,
    /// Send this: [`resolve`](super::resolve) it and
    /// [`deliver`](super::VlapicShared::deliver) it to each.
    Ipi(Ipi),
    /// [`Vlapic::next_deadline`] may have changed.
    TimerChanged,
    /// A level-triggered vector ended: tell the I/O APICs.
    Eoi(u8),
    /// Mode or address changed: map or unmap the page, look at the timer anew.
    BaseChanged,
}

impl Vlapic {
    /// Reads the MMIO page at byte `offset`, `size` bytes. Only whole aligned registers are architectural;
    /// other reads give the bytes of the register they lie in, its upper twelve bytes and whatever lies
    /// across a border being 0. Outside xAPIC mode the caller must not come here; it would read all-ones.
    pub fn mmio_read(&mut self, offset: u16, size: u8, time: &impl TimeSource) -> u64 {
        let ones = u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)));
        if self.mode() != Mode::Xapic {
            return ones;
        }
        let (slot, byte) = ((offset & 0xfff) >> 4, u32::from(offset & 15));
        let register = self.read(Reg(slot as u8), time).unwrap_or_else(|| {
            self.error(ESR_ILLEGAL_REGISTER);
            0
        });
        if byte + u32::from(size) > 16 {
            return 0;
        }
        u64::from(register).checked_shr(8 * byte).unwrap_or(0) & ones
    }

    /// Writes the MMIO page. All but 32-bit writes at a register's start are undefined, and ignored here.
    pub fn mmio_write(&mut self, offset: u16, size: u8, value: u64, time: &impl TimeSource) -> Effect {
        if self.mode() != Mode::Xapic || size != 4 || offset & 15 != 0 {
            return Effect::None;
        }
        self.write_xapic(Reg(((offset & 0xfff) >> 4) as u8), value as u32, time)
    }

    /// Reads an MSR of those that [`owns_msr`](super::owns_msr).
    ///
    /// # Errors
    /// #GP for x2APIC registers outside x2APIC mode, those that don't exist or can't be read, and features
    /// not offered.
    pub fn rdmsr(&mut self, msr: u32, time: &impl TimeSource) -> Result<u64, Gp> {
        match msr {
            MSR_APIC_BASE => Ok(self.read_base()),
            MSR_TSC_DEADLINE if self.config.tsc_deadline => {
                // A deadline that passed reads 0, even if nobody served it yet.
                self.expire(time);
                Ok(self.timer.tsc_deadline())
            }
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST if self.mode() == Mode::X2apic => {
                let reg = Reg((msr - MSR_X2APIC_FIRST) as u8);
                match reg {
                    Reg::ICR_LOW => Ok(self.icr),
                    _ if x2_rule(reg).read => self.read(reg, time).map(u64::from).ok_or(Gp),
                    _ => Err(Gp),
                }
            }
            _ => Err(Gp),
        }
    }

    /// Writes an MSR of those that [`owns_msr`](super::owns_msr).
    ///
    /// # Errors
    /// #GP as for reads, for registers that can't be written, and for reserved bits; nothing has changed
    /// then.
    #[inline]
    pub fn wrmsr(&mut self, msr: u32, value: u64, time: &impl TimeSource) -> Result<Effect, Gp> {
        match msr {
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST if self.mode() == Mode::X2apic => {
                self.write_x2apic(Reg((msr - MSR_X2APIC_FIRST) as u8), value, time)
            }
            MSR_APIC_BASE => self.write_base(value),
            MSR_TSC_DEADLINE if self.config.tsc_deadline => {
                self.expire(time);
                self.timer.write_tsc_deadline(value, self.timer_mode());
                Ok(Effect::TimerChanged)
            }
            _ => Err(Gp),
        }
    }

    #[inline]
    fn write_x2apic(&mut self, reg: Reg, value: u64, time: &impl TimeSource) -> Result<Effect, Gp> {
        let allowed = x2_rule(reg).write.ok_or(Gp)?;
        if value & !allowed != 0 {
            return Err(Gp);
        }
        // The frequent ones first: EOI, ICR, TPR.
        match reg {
            Reg::EOI => Ok(self.eoi().map_or(Effect::None, Effect::Eoi)),
            Reg::ICR_LOW => {
                self.icr = value & (0xffff_ffff << 32 | u64::from(ICR_LOW_BITS));
                Ok(self.send())
            }
            Reg::SELF_IPI => Ok(self.send_self(value as u8)),
            _ => {
                if let Some(lvt) = Lvt::from_reg(reg)
                    && value & !u64::from(lvt.allowed(self.config.tsc_deadline)) != 0
                {
                    return Err(Gp);
                }
                Ok(self.write(reg, value as u32, time))
            }
        }
    }

    fn write_xapic(&mut self, reg: Reg, value: u32, time: &impl TimeSource) -> Effect {
        match reg {
            Reg::EOI => return self.eoi().map_or(Effect::None, Effect::Eoi),
            Reg::ICR_LOW => {
                self.icr = self.icr & (0xffff_ffff << 32) | u64::from(value & ICR_LOW_BITS);
                return self.send();
            }
            Reg::ICR_HIGH => self.icr = self.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32,
            Reg::LDR => self.ldr = (value >> 24) as u8,
            Reg::DFR => self.model = (value >> 28) as u8,
            Reg::SELF_IPI => self.error(ESR_ILLEGAL_REGISTER), // of x2APIC mode only
            _ => return self.write(reg, value, time),
        }
        Effect::None
    }

    /// Writes the registers that behave alike in both modes.
    fn write(&mut self, reg: Reg, value: u32, time: &impl TimeSource) -> Effect {
        let mode = self.timer_mode();
        match reg {
            Reg::TPR => self.tpr = value as u8,
            Reg::SVR => return self.write_svr(value & SVR_BITS as u32, time),
            Reg::ESR => self.esr = core::mem::take(&mut self.errors),
            Reg::TIMER_INITIAL => {
                self.expire(time);
                self.timer.write_initial(value, mode, time.now_ns());
                return Effect::TimerChanged;
            }
            Reg::TIMER_DIVIDE => {
                self.expire(time);
                self.timer.write_divide(value, mode, time.now_ns());
                return Effect::TimerChanged;
            }
            _ => match Lvt::from_reg(reg) {
                Some(entry) => return self.write_lvt(entry, value, time),
                None if is_read_only(reg) => {}
                None => self.error(ESR_ILLEGAL_REGISTER),
            },
        }
        Effect::None
    }

    /// Disabling by software masks all of the LVT; the masks stay when it is enabled again.
    fn write_svr(&mut self, value: u32, time: &impl TimeSource) -> Effect {
        let was = self.svr & SVR_ENABLE != 0;
        if !was || value & SVR_ENABLE != 0 {
            self.svr = value;
            return Effect::None;
        }
        self.expire(time);
        self.svr = value;
        self.lvt.iter_mut().for_each(|lvt| *lvt |= LVT_MASKED);
        Effect::TimerChanged
    }

    fn write_lvt(&mut self, entry: Lvt, value: u32, time: &impl TimeSource) -> Effect {
        let mut new = value & entry.writable(self.config.tsc_deadline);
        if self.svr & SVR_ENABLE == 0 {
            new |= LVT_MASKED;
        }
        if entry != Lvt::Timer {
            self.lvt[entry as usize] = new;
            return Effect::None;
        }
        // What passed until now passed under the old mask and mode.
        self.expire(time);
        let old = self.timer_mode();
        self.lvt[Lvt::Timer as usize] = new;
        self.timer.change_mode(old, TimerMode::from_lvt(new));
        Effect::TimerChanged
    }

    /// Acts on the ICR.
    fn send(&mut self) -> Effect {
        let Some(ipi) = Ipi::from_icr(self.icr, self.mode() == Mode::X2apic) else { return Effect::None };
        if ipi.mode.is_vectored() {
            if ipi.shorthand == Shorthand::Myself {
                return self.send_self(ipi.vector);
            }
            if ipi.vector < FIRST_LEGAL_VECTOR {
                self.error(ESR_SEND_ILLEGAL);
                return Effect::None;
            }
        }
        Effect::Ipi(ipi)
    }

    fn send_self(&mut self, vector: u8) -> Effect {
        if vector < FIRST_LEGAL_VECTOR {
            self.error(ESR_SEND_ILLEGAL);
        } else {
            self.accept(vector);
        }
        Effect::None
    }

    /// Reads a register, whichever way it is reached; `None` if there is none of that number.
    fn read(&self, reg: Reg, time: &impl TimeSource) -> Option<u32> {
        let x2apic = self.mode() == Mode::X2apic;
        Some(match reg {
            Reg::ID if x2apic => self.config.id,
            Reg::ID => self.config.id << 24,
            Reg::VERSION => VERSION,
            Reg::TPR => u32::from(self.tpr),
            Reg::APR => u32::from(self.apr()),
            Reg::PPR => u32::from(self.ppr()),
            Reg::EOI | Reg::RRD => 0,
            Reg::LDR if x2apic => x2apic_logical_id(self.config.id),
            Reg::LDR => u32::from(self.ldr) << 24,
            Reg::DFR => u32::from(self.model) << 28 | 0x0fff_ffff,
            Reg::SVR => self.svr,
            Reg(n @ 0x10..=0x17) => self.isr.register(usize::from(n - 0x10)),
            Reg(n @ 0x18..=0x1f) => self.tmr.register(usize::from(n - 0x18)),
            Reg(n @ 0x20..=0x27) => self.irr.register(usize::from(n - 0x20)),
            Reg::ESR => self.esr,
            Reg::ICR_LOW => self.icr as u32,
            Reg::ICR_HIGH => (self.icr >> 32) as u32,
            Reg::TIMER_INITIAL => self.timer.initial(),
            Reg::TIMER_CURRENT => self.timer.current(self.timer_mode(), time.now_ns()),
            Reg::TIMER_DIVIDE => self.timer.divide(),
            _ => self.lvt[Lvt::from_reg(reg)? as usize],
        })
    }

    /// Arbitration priority, SDM vol. 3, "Arbitration Priority Register": for the curious only.
    fn apr(&self) -> u8 {
        let requested = self.irr.highest().unwrap_or(0) & 0xf0;
        let ppr = self.ppr();
        if ppr & 0xf0 >= requested { ppr } else { requested }
    }
}

/// Registers of the page that exist but can't be written: such writes are dropped without an error.
const fn is_read_only(reg: Reg) -> bool {
    matches!(reg.0, 0x02 | 0x03 | 0x09 | 0x0a | 0x0c | 0x10..=0x27 | 0x39)
}
