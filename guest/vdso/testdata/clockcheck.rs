// As clockcheck/main_unsafe.go, through Rust's standard library; the error is not measured (no raw system call).
use std::time::{Duration, Instant};

fn main() {
    const READS: u32 = 1_000_000;
    let start = Instant::now();
    let (mut last, mut back) = (Duration::ZERO, 0);
    for _ in 0..READS {
        let now = start.elapsed();
        if now < last {
            back += 1;
        }
        last = now;
    }
    println!("{READS} {back} 0 0");
}
