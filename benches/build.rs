//! Building what is asked, out of keys or fingerprints.
//!
//! `cargo bench -p revocast-benches --bench build`

use std::collections::HashSet;
use std::time::Duration;

use bloomfilter::Bloom;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use fastbloom::BloomFilter;
use revocast_benches::{COUNTS, RATE, filter, fingerprints, present_keys};
use revocast_core::{ExactList, Width, rice};

fn build(criterion: &mut Criterion) {
    for (name, count) in COUNTS {
        let keys = present_keys(count);
        let texts = keys.texts();
        let sorted = fingerprints(&keys);
        let mut group = criterion.benchmark_group(format!("build/{name}"));
        group.throughput(Throughput::Elements(count as u64)).sample_size(20);
        group.bench_function("fingerprints: hash and sort", |bencher| {
            bencher.iter(|| fingerprints(&keys));
        });
        group.bench_function("revocast filter from fingerprints", |bencher| {
            bencher.iter(|| filter(&sorted, RATE));
        });
        group.bench_function("revocast list from fingerprints", |bencher| {
            bencher.iter(|| ExactList::from_sorted(&sorted, Width::W48));
        });
        group.bench_function("revocast code from fingerprints", |bencher| {
            bencher.iter(|| rice::encode(&sorted, Width::W48));
        });
        group.bench_function("bloomfilter", |bencher| {
            bencher.iter(|| {
                let mut bloom = Bloom::<str>::new_for_fp_rate(count, RATE).expect("a rate within reach");
                for text in &texts {
                    bloom.set(text);
                }
                bloom
            });
        });
        group.bench_function("fastbloom", |bencher| {
            bencher.iter(|| {
                let mut bloom = BloomFilter::with_false_pos(RATE).expected_items(count);
                for text in &texts {
                    bloom.insert(*text);
                }
                bloom
            });
        });
        group.bench_function("HashSet<String>", |bencher| {
            bencher.iter_batched(
                || (),
                |()| texts.iter().map(|&text| text.to_owned()).collect::<HashSet<_>>(),
                BatchSize::PerIteration,
            );
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    targets = build
}
criterion_main!(benches);
