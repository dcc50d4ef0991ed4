//! What summing an adapter's gradients over the processes of a run takes, by its size: once a step, whatever the step does.
//!
//! `cargo bench -p aspo-benches --features mpi --bench ranks --no-run`, then `mpirun -np 2 target/release/deps/ranks-…`.

use std::time::Instant;

use aspo_train::Ranks;

fn main() {
    let ranks = Ranks::started().unwrap();
    if ranks.is_first() {
        println!("processes  parameters        MB   seconds    MB/s");
    }
    for millions in [1, 10, 40, 160] {
        let mut values = vec![1.0_f32; millions * 1_000_000];
        // Once to warm up; then the middle of five.
        let mut seconds: Vec<f64> = (0..6)
            .map(|_| {
                values.fill(1.0);
                let begin = Instant::now();
                ranks.sum(&mut values);
                begin.elapsed().as_secs_f64()
            })
            .skip(1)
            .collect();
        assert!(values.iter().all(|value| *value == ranks.size() as f32), "the sum");
        seconds.sort_by(f64::total_cmp);
        let (middle, size) = (seconds[2], (4 * millions) as f64);
        if ranks.is_first() {
            println!("{:>9} {millions:>9} M {size:>9.0} {middle:>9.4} {:>7.0}", ranks.size(), size / middle);
        }
    }
}
