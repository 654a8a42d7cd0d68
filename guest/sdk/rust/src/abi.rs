// SPDX-License-Identifier: Apache-2.0
// Generated from guest/abi by guest/sdk/sdk_test.go; do not edit.

use core::sync::atomic::AtomicU64;

/// `CLOISTER_PAGE` of cloister.h.
pub const PAGE: u64 = 0x1000;
/// `CLOISTER_SYS_ISOLATE` of cloister.h.
pub const SYS_ISOLATE: u64 = 0x434c00;
/// `CLOISTER_SYS_GAP_RECORD` of cloister.h.
pub const SYS_GAP_RECORD: u64 = 0x434c01;
/// `CLOISTER_GAP_MAGIC` of cloister.h.
pub const GAP_MAGIC: u64 = 0x4345525041474c43;
/// `CLOISTER_GAP_KIND_LOOP` of cloister.h.
pub const GAP_KIND_LOOP: u64 = 0x1;
/// `CLOISTER_GAP_KIND_CYCLIC` of cloister.h.
pub const GAP_KIND_CYCLIC: u64 = 0x2;
/// `CLOISTER_GAP_BUCKETS` of cloister.h.
pub const GAP_BUCKETS: u64 = 0x40;
/// `CLOISTER_GAP_RING` of cloister.h.
pub const GAP_RING: u64 = 0x100;
/// `CLOISTER_RING_MAGIC` of cloister.h.
pub const RING_MAGIC: u64 = 0x474e49524f494c43;
/// `CLOISTER_RING_VERSION` of cloister.h.
pub const RING_VERSION: u64 = 0x1;
/// `CLOISTER_RING_DATA` of cloister.h.
pub const RING_DATA: u64 = 0x1000;
/// `CLOISTER_RING_MIN_SIZE` of cloister.h.
pub const RING_MIN_SIZE: u64 = 0x1000;
/// `CLOISTER_RING_MAX_SIZE` of cloister.h.
pub const RING_MAX_SIZE: u64 = 0x40000000;
/// `CLOISTER_RING_PREFIX` of cloister.h.
pub const RING_PREFIX: u64 = 0x8;
/// `CLOISTER_SYS_SAFEPOINT` of cloister.h.
pub const SYS_SAFEPOINT: u64 = 0x434c03;
/// `CLOISTER_SYS_SYNC` of cloister.h.
pub const SYS_SYNC: u64 = 0x434c04;
/// `CLOISTER_SAFEPOINT_HERE` of cloister.h.
pub const SAFEPOINT_HERE: u64 = 0x0;
/// `CLOISTER_SAFEPOINT_WORD` of cloister.h.
pub const SAFEPOINT_WORD: u64 = 0x1;
/// `CLOISTER_SAFEPOINT_QUIET` of cloister.h.
pub const SAFEPOINT_QUIET: u64 = 0x2;

#[allow(clippy::declare_interior_mutable_const)]
const ZERO: AtomicU64 = AtomicU64::new(0);
#[allow(clippy::declare_interior_mutable_const)]
const NO_GAP: Gap = Gap {
    tsc: ZERO,
    length: ZERO,
};

/// One pass longer than the threshold.
#[repr(C)]
pub struct Gap {
    /// At the end of the gap.
    pub tsc: AtomicU64,
    /// Of the gap.
    pub length: AtomicU64,
}

/// What a loop records of its disturbances. Put it in a [`crate::PageAligned`].
#[repr(C)]
pub struct GapRecord {
    /// GAP_MAGIC.
    pub magic: AtomicU64,
    /// GAP_KIND_LOOP: every pass is counted; GAP_KIND_CYCLIC: lateness of wake-ups.
    pub kind: AtomicU64,
    /// A delta at or above it is a gap; all times are TSC cycles.
    pub threshold: AtomicU64,
    /// GAP_KIND_CYCLIC: between wake-ups.
    pub period: AtomicU64,
    /// Made so far; store after hist.
    pub passes: AtomicU64,
    /// Passes at or above the threshold.
    pub gaps: AtomicU64,
    /// Sum of all gaps.
    pub stolen: AtomicU64,
    /// Shortest delta.
    pub min: AtomicU64,
    /// Longest delta.
    pub max: AtomicU64,
    /// TSC of the first pass.
    pub start: AtomicU64,
    /// TSC of the latest pass.
    pub last: AtomicU64,
    /// Gaps written to ring so far; store after ring.
    pub ring_next: AtomicU64,
    /// 0.
    pub reserved: [AtomicU64; 4],
    /// Bucket i counts deltas of i significant bits.
    pub hist: [AtomicU64; 64],
    /// The latest gaps.
    pub ring: [Gap; 256],
}

impl GapRecord {
    /// A record of nothing; set `magic`, `kind`, `threshold` and `min` before it is shown.
    pub const fn new() -> Self {
        GapRecord {
            magic: ZERO,
            kind: ZERO,
            threshold: ZERO,
            period: ZERO,
            passes: ZERO,
            gaps: ZERO,
            stolen: ZERO,
            min: ZERO,
            max: ZERO,
            start: ZERO,
            last: ZERO,
            ring_next: ZERO,
            reserved: [ZERO; 4],
            hist: [ZERO; 64],
            ring: [NO_GAP; 256],
        }
    }
}

impl Default for GapRecord {
    fn default() -> Self {
        Self::new()
    }
}
