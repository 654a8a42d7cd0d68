// Collections, formatting, a panic that is caught, and one that is not.
use std::collections::BTreeMap;
use std::io::{self, Read, Write};

#[inline(never)]
fn risky(n: usize) -> usize {
    let v = vec![1, 2, 3];
    v[n]
}

fn main() {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).expect("read");
    let mut words = BTreeMap::new();
    for w in text.split_whitespace() {
        *words.entry(w).or_insert(0usize) += 1;
    }
    for (w, n) in &words {
        println!("{w:>12} {n}");
    }
    let r = std::panic::catch_unwind(|| risky(7));
    println!("caught: {}", r.is_err());
    let boxed: Vec<Box<dyn Fn(i64) -> i64>> = vec![Box::new(|x| x + 1), Box::new(|x| x * x)];
    println!("{:?} {:.3}", boxed.iter().map(|f| f(12)).collect::<Vec<_>>(), 2f64.sqrt());
    let start = std::time::Instant::now();
    println!("{}", start.elapsed().as_secs() < 60);
    io::stderr().write_all(b"to stderr\n").unwrap();
    let args: Vec<_> = std::env::args().skip(1).collect();
    println!("{args:?}");
    if !args.is_empty() {
        risky(args.len() + 5);
    }
    std::process::exit(5);
}
