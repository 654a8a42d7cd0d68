// threads.rs: std's threads, scopes, channels, locks, atomics, collections, files and panics.
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{mpsc, Arc, Barrier, Condvar, Mutex, Once, RwLock};
use std::time::{Duration, Instant};
use std::{env, fs, panic, thread};

fn mix(mut x: u64) -> u64 {
    x ^= x >> 30;
    x = x.wrapping_mul(0xbf58476d1ce4e5b9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94d049bb133111eb);
    x ^ (x >> 31)
}

fn channels() {
    let (send, receive) = mpsc::sync_channel::<(usize, u64)>(16);
    let crew: Vec<_> = (0..8)
        .map(|t| {
            let send = send.clone();
            thread::Builder::new()
                .name(format!("producer-{t}"))
                .spawn(move || {
                    for i in 0..2000u64 {
                        send.send((t, mix(i + t as u64))).unwrap();
                    }
                    thread::current().name().unwrap().len()
                })
                .unwrap()
        })
        .collect();
    drop(send);
    let mut sums = BTreeMap::new();
    for (t, v) in receive {
        let e: &mut u64 = sums.entry(t).or_insert(0);
        *e = e.wrapping_add(v);
    }
    println!("channels {sums:?}");
    println!("names {}", crew.into_iter().map(|c| c.join().unwrap()).sum::<usize>());
}

fn scopes() {
    let data: Vec<u64> = (0..1_000_000).map(mix).collect();
    let total = AtomicU64::new(0);
    let parts: Vec<u64> = thread::scope(|s| {
        let all: Vec<_> = data
            .chunks(100_000)
            .map(|c| {
                let total = &total;
                s.spawn(move || {
                    let mut v = c.to_vec();
                    v.sort_unstable();
                    total.fetch_add(v.iter().fold(0u64, |a, b| a.wrapping_add(*b)), Ordering::Relaxed);
                    v[v.len() / 2]
                })
            })
            .collect();
        all.into_iter().map(|h| h.join().unwrap()).collect()
    });
    println!("scopes {} {:x?}", total.load(Ordering::SeqCst), parts);
}

fn locks() {
    let counts = Arc::new(RwLock::new(HashMap::new()));
    let turn = Arc::new((Mutex::new(0usize), Condvar::new()));
    let barrier = Arc::new(Barrier::new(6));
    let leaders = Arc::new(AtomicUsize::new(0));
    static ONCE: Once = Once::new();
    let crew: Vec<_> = (0..6usize)
        .map(|t| {
            let (counts, turn, barrier, leaders) = (counts.clone(), turn.clone(), barrier.clone(), leaders.clone());
            thread::spawn(move || {
                ONCE.call_once(|| println!("once"));
                for i in 0..1000usize {
                    *counts.write().unwrap().entry(i % 17).or_insert(0usize) += 1;
                    assert!(counts.read().unwrap().len() <= 17);
                }
                if barrier.wait().is_leader() {
                    leaders.fetch_add(1, Ordering::SeqCst);
                }
                let (lock, changed) = &*turn;
                for round in 0..50 {
                    let mut now = lock.lock().unwrap();
                    while *now != round * 6 + t {
                        now = changed.wait(now).unwrap();
                    }
                    *now += 1;
                    changed.notify_all();
                }
            })
        })
        .collect();
    for c in crew {
        c.join().unwrap();
    }
    let table: BTreeMap<_, _> = counts.read().unwrap().clone().into_iter().collect();
    println!("locks {table:?} turns {} leaders {}", turn.0.lock().unwrap(), leaders.load(Ordering::SeqCst));
    let (lock, never) = (Mutex::new(()), Condvar::new());
    let begin = Instant::now();
    let (_g, r) = never.wait_timeout(lock.lock().unwrap(), Duration::from_millis(30)).unwrap();
    println!("timeout {} {}", r.timed_out(), begin.elapsed() >= Duration::from_millis(30));
    let sleeper = thread::spawn(|| thread::park_timeout(Duration::from_secs(60)));
    sleeper.thread().unpark();
    println!("parked {}", sleeper.join().is_ok());
}

fn files(dir: &str) -> std::io::Result<()> {
    let deep = format!("{dir}/rs/a/b");
    fs::create_dir_all(&deep)?;
    for i in 0..40 {
        fs::write(format!("{deep}/{i:03}"), vec![b'x'; i * 1000])?;
    }
    let mut f = fs::OpenOptions::new().read(true).write(true).create(true).open(format!("{dir}/rs/log"))?;
    for i in 0..1000 {
        writeln!(f, "line {i}")?;
    }
    f.seek(SeekFrom::Start(5))?;
    let lines = BufReader::new(&f).lines().count();
    f.set_len(10)?;
    f.seek(SeekFrom::Start(0))?;
    let mut left = String::new();
    f.read_to_string(&mut left)?;
    fs::rename(format!("{dir}/rs/log"), format!("{dir}/rs/moved"))?;
    fs::copy(format!("{dir}/rs/moved"), format!("{dir}/rs/copied"))?;
    let mut names: Vec<_> = fs::read_dir(&deep)?.map(|e| e.map(|e| (e.file_name(), e.metadata().unwrap().len()))).collect::<Result<_, _>>()?;
    names.sort();
    println!("files {lines} {left:?} {} {:?}", names.len(), names.last());
    println!("missing {:?}", fs::read(format!("{dir}/nothere")).unwrap_err().kind());
    println!("not empty {}", fs::remove_dir(&deep).is_err());
    fs::remove_dir_all(format!("{dir}/rs"))
}

fn panics() {
    panic::set_hook(Box::new(|_| {}));
    let m = Arc::new(Mutex::new(1));
    let n = m.clone();
    let r = thread::spawn(move || {
        let _held = n.lock().unwrap();
        panic!("on purpose {}", 42)
    })
    .join();
    println!("panic {:?} poisoned {}", r.unwrap_err().downcast_ref::<String>(), m.is_poisoned());
    let _ = panic::take_hook();
}

fn main() {
    let dir = env::args().nth(1).expect("a directory");
    channels();
    scopes();
    locks();
    files(&dir).unwrap();
    panics();
    println!("parallelism is at least one: {}", thread::available_parallelism().map(|n| n.get() > 0).unwrap_or(false));
    std::process::exit(5);
}
