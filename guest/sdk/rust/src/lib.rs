// SPDX-License-Identifier: Apache-2.0
//! What a program says to Cloister. Harmless natively: the kernel answers `ENOSYS`.
#![no_std]
#![deny(missing_docs)]

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("the crate cloister is for Linux on x86-64");

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

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
    syscall2(nr, arg, 0)
}

fn syscall2(nr: u64, arg: u64, arg2: u64) -> Result<(), Errno> {
    let result: i64;
    // SAFETY: SYSCALL changes RAX, RCX and R11 only; of the calls made here none writes to memory, and the
    // missing `nomem` keeps the loop's loads and stores on their side of the seal.
    unsafe {
        core::arch::asm!("syscall", inlateout("rax") nr => result, in("rdi") arg, in("rsi") arg2,
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

/// A word with a cache line of its own, which every pass of a sealed loop reads.
#[repr(C, align(64))]
struct SafeWord(AtomicU32);

// Not 0 while a patch waits for safe points, and until it is registered.
static SAFE_WORD: SafeWord = SafeWord(AtomicU32::new(1));
static REGISTERED: AtomicBool = AtomicBool::new(false);

/// Says that the calling thread is between two passes: no function on its stack would see a mixture of old and new code.
///
/// It costs one load; while a patch waits, a system call in which the patch is made. The first call registers the word that is
/// loaded, by two system calls: make it before sealing. Natively it does nothing.
#[inline]
pub fn safepoint() {
    if SAFE_WORD.0.load(Ordering::Acquire) != 0 {
        safepoint_waits();
    }
}

#[cold]
fn safepoint_waits() {
    if !REGISTERED.swap(true, Ordering::AcqRel) {
        // 0 before it is shown: a store behind that could wipe the 1 of a patch that waits.
        SAFE_WORD.0.store(0, Ordering::Release);
        // What comes back changes nothing: natively there is nobody to tell, and the word stays 0.
        let _ = syscall2(SYS_SAFEPOINT, SAFEPOINT_WORD, &SAFE_WORD as *const _ as u64);
    }
    let _ = syscall2(SYS_SAFEPOINT, SAFEPOINT_HERE, 0); // 0, or ENOSYS natively
}

/// Says (`on`) that the calling thread executes nothing that is ever patched until it says otherwise: a helper that sleeps shall
/// not hold up a patch that waits for safe points.
///
/// # Errors
/// `ENOSYS` natively.
pub fn quiet(on: bool) -> Result<(), Errno> {
    syscall2(SYS_SAFEPOINT, SAFEPOINT_QUIET, on as u64)
}

/// A thread could not be stopped in time.
pub const ETIMEDOUT: i32 = 110;

/// For a program that has written code: when it returns `Ok`, every other thread executes a serialising instruction before its
/// next instruction of the program.
///
/// # Errors
/// `ETIMEDOUT` when a thread could not be stopped; `ENOSYS` natively, where membarrier(2) does it.
pub fn sync_cores() -> Result<(), Errno> {
    syscall1(SYS_SYNC, 0)
}
