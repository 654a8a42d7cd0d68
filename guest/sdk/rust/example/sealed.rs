//! Seals, loops, unseals. Status 0 natively and under Cloister, 75 if it may not be sealed; the loop itself makes no system call.
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

static RECORD: cloister::PageAligned<cloister::GapRecord> =
    cloister::PageAligned(cloister::GapRecord::new());

fn main() -> ExitCode {
    RECORD.0.magic.store(cloister::GAP_MAGIC, Ordering::Release);
    RECORD.0.kind.store(cloister::GAP_KIND_LOOP, Ordering::Release);
    let shown = cloister::gap_record(&RECORD);

    let on = cloister::isolate(true);
    if on == Err(cloister::Errno(cloister::EAGAIN)) {
        // cloister run --require, and the core is not quiet enough now.
        eprintln!("not sealed: try again later");
        return ExitCode::from(75);
    }
    let mut sum = 0u64;
    for i in 0..1_000_000u64 {
        sum = black_box(sum + i);
    }
    let off = cloister::isolate(false);

    println!("sum {sum}");
    // Natively none of the three works.
    if on != off || shown.is_ok() != cloister::available() {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
