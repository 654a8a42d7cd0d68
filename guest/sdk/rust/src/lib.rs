// SPDX-License-Identifier: Apache-2.0
//! What a program says to Cloister. Harmless natively: the kernel answers `ENOSYS`.
#![no_std]
#![deny(missing_docs)]

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("the crate cloister is for Linux on x86-64");

mod abi;
pub use abi::*;

/// An error number of Linux, positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// The kernel does not know the system call: the program runs natively.
pub const ENOSYS: i32 = 38;

/// The core is not of the grade of `cloister run --require` at this moment, or the thread has none of its own: nothing is
/// sealed. It may be tried again; the report says why.
pub const EAGAIN: i32 = 11;

/// Puts its content at the start of a page, where a [`GapRecord`] must be.
#[repr(C, align(4096))]
pub struct PageAligned<T>(pub T);

fn syscall1(nr: u64, arg: u64) -> Result<(), Errno> {
    let result: i64;
    // SAFETY: SYSCALL changes RAX, RCX and R11 only; of the calls made here none writes to memory, and the
    // missing `nomem` keeps the loop's loads and stores on their side of the seal.
    unsafe {
        core::arch::asm!("syscall", inlateout("rax") nr => result, in("rdi") arg,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    if result < 0 {
        return Err(Errno(-result as i32));
    }
    Ok(())
}

/// Seals (`on`) or unseals the calling vCPU: breaks in between count against the run's budget.
///
/// # Errors
/// `EAGAIN` when sealing is refused (see there); `ENOSYS` natively. Unsealing is never refused.
pub fn isolate(on: bool) -> Result<(), Errno> {
    syscall1(SYS_ISOLATE, on as u64)
}

/// Shows a record to the monitor, which reads it until the program ends.
///
/// # Errors
/// `EFAULT` or `EINVAL` for an address that Cloister refuses; `ENOSYS` natively.
pub fn gap_record(record: &'static PageAligned<GapRecord>) -> Result<(), Errno> {
    syscall1(SYS_GAP_RECORD, record as *const _ as u64)
}

/// Whether the program runs under Cloister. It offers a record at an odd address, which no one accepts.
pub fn available() -> bool {
    syscall1(SYS_GAP_RECORD, 1) != Err(Errno(ENOSYS))
}
