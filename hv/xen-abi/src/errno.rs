//! Error numbers (`public/errno.h`). Hypercalls return them negated.

use crate::macros::numbers;

numbers! {
    /// An error number, positive.
    Errno: i32 {
        /// Operation not permitted.
        EPERM = 1;
        /// No such thing (bad vCPU id, unknown parameter).
        ENOENT = 2;
        /// No such domain.
        ESRCH = 3;
        /// Argument list too long.
        E2BIG = 7;
        /// Try again.
        EAGAIN = 11;
        /// Out of memory.
        ENOMEM = 12;
        /// Permission denied; also a wrong interface version.
        EACCES = 13;
        /// Bad guest address.
        EFAULT = 14;
        /// Busy.
        EBUSY = 16;
        /// Already there.
        EEXIST = 17;
        /// No such device.
        ENODEV = 19;
        /// Invalid argument.
        EINVAL = 22;
        /// No space left (no free port).
        ENOSPC = 28;
        /// Out of range.
        ERANGE = 34;
        /// No such operation.
        ENOSYS = 38;
        /// No data.
        ENODATA = 61;
        /// No such device or address.
        ENXIO = 6;
        /// Operation not supported.
        EOPNOTSUPP = 95;
    }
}

impl Errno {
    /// As a hypercall's result.
    pub const fn result(self) -> i64 {
        -(self.0 as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn results_are_negative_and_names_are_known() {
        assert_eq!(Errno::ENOSYS.result(), -38);
        assert_eq!(format!("{:?}", Errno::EINVAL), "Errno::EINVAL");
        assert_eq!(format!("{:?}", Errno(4711)), "Errno(0x1267)");
    }
}
