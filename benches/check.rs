//! One question, hash included: ours beside what people use today.
//!
//! `cargo bench -p revocast-benches --bench check`

use std::collections::HashSet;
use std::hint::black_box;
use std::time::Duration;

use bloomfilter::Bloom;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use fastbloom::BloomFilter;
use revocast_benches::{
    Asked, COUNTS, Exact, Keys, RATE, Rotation, absent_keys, fingerprints, forge, present_keys, replica,
};

fn check(criterion: &mut Criterion) {
    let absent = absent_keys();
    for (name, count) in COUNTS {
        let present = present_keys(count);
        let held = Opponents::new(&present, count);
        for (kind, keys) in [("absent", &absent), ("present", &present.shuffled())] {
            let mut group = criterion.benchmark_group(format!("check/{name}/{kind}"));
            group.throughput(Throughput::Elements(1));
            ask(&mut group, "revocast Checker::check", keys, |text| held.checker.is_revoked(text));
            ask(&mut group, "revocast filter and list", keys, |text| held.ours.contains(text));
            ask(&mut group, "revocast filter", keys, |text| held.ours.maybe(text));
            ask(&mut group, "revocast list", keys, |text| held.ours.listed(text));
            ask(&mut group, "bloomfilter", keys, |text| held.bloomfilter.check(text));
            ask(&mut group, "fastbloom", keys, |text| held.fastbloom.contains(text));
            ask(&mut group, "HashSet<String>", keys, |text| held.set.contains(text));
            group.finish();
        }
    }
}

/// Measures one question, the keys going round.
fn ask(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, keys: &Keys, question: impl Fn(&str) -> bool) {
    let mut keys = Rotation::new(keys.texts());
    group.bench_function(name, |bencher| bencher.iter(|| question(black_box(keys.next_key()))));
}

/// Everything that is asked, holding the same keys.
struct Opponents {
    checker: Asked,
    ours: Exact,
    bloomfilter: Bloom<str>,
    fastbloom: BloomFilter,
    set: HashSet<String>,
}

impl Opponents {
    fn new(keys: &Keys, count: usize) -> Self {
        let texts = keys.texts();
        let mut bloomfilter = Bloom::<str>::new_for_fp_rate(count, RATE).expect("a rate within reach");
        let mut fastbloom = BloomFilter::with_false_pos(RATE).expected_items(count);
        for text in &texts {
            bloomfilter.set(text);
            fastbloom.insert(*text);
        }
        let set = texts.iter().map(|&text| text.to_owned()).collect();
        Self {
            checker: Asked::new(&replica(&forge(), keys)),
            ours: Exact::new(&fingerprints(keys)),
            bloomfilter,
            fastbloom,
            set,
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    targets = check
}
criterion_main!(benches);
