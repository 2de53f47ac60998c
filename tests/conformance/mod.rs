//! What every communicator must do, told once. Sums are of small integers, so that they are exact in any order.

use rigscale::comm::{CommError, Communicator, Shard};
use rigscale::device::Floats;

/// Lengths of the buckets that every rank brings, in this order.
pub(crate) const LENGTHS: [usize; 9] = [0, 1, 3, 5, 1001, 4096, 16, 262_147, 5];

/// Runs the suite as one rank; all ranks run it at once. `buckets` have [`LENGTHS`].
pub(crate) fn conforms<C: Communicator<Buf = Floats>>(comm: &mut C, buckets: &mut [Floats]) -> Result<(), CommError> {
    assert!(comm.rank() < comm.world());
    assert_eq!(buckets.iter().map(|bucket| bucket.len()).collect::<Vec<_>>(), LENGTHS);
    sums_exactly(comm, buckets)?;
    sums_several_at_once(comm, buckets)?;
    sums_nothing(comm)?;
    keeps_what_it_is_not_given(comm, buckets)?;
    gives_the_same_bits_to_all(comm, buckets)?;
    scatters_sums(comm, buckets)?;
    gathers(comm, buckets)?;
    repeats(comm, buckets)?;
    comm.barrier()
}

/// What rank `rank` brings at `place`: a small integer.
fn term(rank: usize, place: usize, turn: usize) -> f32 {
    ((rank + 1) * ((place * 7 + turn) % 11 + 1)) as f32
}

/// What `world` of them sum to.
fn total(world: usize, place: usize, turn: usize) -> f32 {
    (0..world).map(|rank| term(rank, place, turn)).sum()
}

fn fill(bucket: &mut Floats, rank: usize, turn: usize) {
    for (place, element) in bucket.iter_mut().enumerate() {
        *element = term(rank, place, turn);
    }
}

fn check(bucket: &Floats, world: usize, turn: usize) {
    for (place, &element) in bucket.iter().enumerate() {
        assert_eq!(element, total(world, place, turn), "element {place} of {} in turn {turn}", bucket.len());
    }
}

fn sums_exactly<C: Communicator<Buf = Floats>>(comm: &mut C, buckets: &mut [Floats]) -> Result<(), CommError> {
    for bucket in buckets.iter_mut() {
        fill(bucket, comm.rank(), 0);
        comm.all_reduce_sum(&mut [&mut *bucket])?;
        comm.wait()?;
        check(bucket, comm.world(), 0);
    }
    Ok(())
}

fn sums_several_at_once<C: Communicator<Buf = Floats>>(comm: &mut C, buckets: &mut [Floats]) -> Result<(), CommError> {
    for (turn, bucket) in buckets.iter_mut().enumerate() {
        fill(bucket, comm.rank(), turn);
    }
    let mut all: Vec<&mut Floats> = buckets.iter_mut().rev().collect();
    comm.all_reduce_sum(&mut all)?;
    comm.wait()?;
    for (turn, bucket) in buckets.iter().enumerate() {
        check(bucket, comm.world(), turn);
    }
    Ok(())
}

fn sums_nothing<C: Communicator<Buf = Floats>>(comm: &mut C) -> Result<(), CommError> {
    comm.all_reduce_sum(&mut [])?;
    comm.wait()
}

fn keeps_what_it_is_not_given<C: Communicator<Buf = Floats>>(
    comm: &mut C,
    buckets: &mut [Floats],
) -> Result<(), CommError> {
    let rank = comm.rank();
    buckets.iter_mut().for_each(|bucket| fill(bucket, rank, 3));
    comm.all_reduce_sum(&mut [&mut buckets[4]])?;
    comm.wait()?;
    for (number, bucket) in buckets.iter().enumerate() {
        let ours = |place| if number == 4 { total(comm.world(), place, 3) } else { term(rank, place, 3) };
        assert!(bucket.iter().enumerate().all(|(place, &element)| element == ours(place)), "bucket {number}");
    }
    Ok(())
}

/// Floats whose sum depends on the order: each rank compares a digest of its bits with everyone's, by summing them.
fn gives_the_same_bits_to_all<C: Communicator<Buf = Floats>>(
    comm: &mut C,
    buckets: &mut [Floats],
) -> Result<(), CommError> {
    let mut state = 0x9e37_79b9_u32.wrapping_mul(comm.rank() as u32 + 1);
    for element in buckets[7].iter_mut() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *element = (state >> 8) as f32 * 10_f32.powi((state % 7) as i32 - 9) - 1.0;
    }
    comm.all_reduce_sum(&mut [&mut buckets[7]])?;
    comm.wait()?;
    let digest = buckets[7].iter().fold(0_u32, |digest, element| digest.rotate_left(5) ^ element.to_bits());
    // 16-bit halves are exact as floats, and their sum over the ranks is N times ours only if all are equal: the
    // other buckets hold one rank's halves each.
    let rank = comm.rank();
    assert!(2 * comm.world() <= buckets[4].len());
    buckets[4].fill(0.0);
    buckets[4][2 * rank] = (digest & 0xffff) as f32;
    buckets[4][2 * rank + 1] = (digest >> 16) as f32;
    comm.all_reduce_sum(&mut [&mut buckets[4]])?;
    comm.wait()?;
    for peer in 0..comm.world() {
        let theirs = (buckets[4][2 * peer] as u32) | (buckets[4][2 * peer + 1] as u32) << 16;
        assert_eq!(theirs, digest, "ranks {rank} and {peer} have other bits");
    }
    Ok(())
}

/// Each rank gets the sum of its own chunk, one buffer at a time and all at once.
fn scatters_sums<C: Communicator<Buf = Floats>>(comm: &mut C, buckets: &mut [Floats]) -> Result<(), CommError> {
    let shard = Shard { rank: comm.rank(), world: comm.world() };
    let own = |bucket: &Floats, turn: usize| {
        let chunk = shard.of(bucket.len());
        for (place, &element) in chunk.clone().zip(&bucket[chunk]) {
            assert_eq!(element, total(shard.world, place, turn), "element {place} of {} in turn {turn}", bucket.len());
        }
    };
    for bucket in buckets.iter_mut() {
        fill(bucket, shard.rank, 5);
        comm.reduce_scatter_sum(&mut [&mut *bucket])?;
        comm.wait()?;
        own(bucket, 5);
    }
    buckets.iter_mut().enumerate().for_each(|(turn, bucket)| fill(bucket, shard.rank, turn));
    comm.reduce_scatter_sum(&mut buckets.iter_mut().collect::<Vec<_>>())?;
    comm.wait()?;
    buckets.iter().enumerate().for_each(|(turn, bucket)| own(bucket, turn));
    Ok(())
}

/// Each rank gets the chunks of all others, every bit of them, also where they are no numbers.
fn gathers<C: Communicator<Buf = Floats>>(comm: &mut C, buckets: &mut [Floats]) -> Result<(), CommError> {
    let shard = Shard { rank: comm.rank(), world: comm.world() };
    let bits = |place: usize| (place as u32).wrapping_mul(2_654_435_761) | 0x7f80_0000;
    for bucket in buckets.iter_mut() {
        bucket.fill(-1.0);
        let chunk = shard.of(bucket.len());
        chunk.clone().zip(&mut bucket[chunk]).for_each(|(place, element)| *element = f32::from_bits(bits(place)));
    }
    let (first, others) = buckets.split_at_mut(4);
    for bucket in first {
        comm.all_gather(&mut [bucket])?;
    }
    comm.all_gather(&mut others.iter_mut().collect::<Vec<_>>())?;
    comm.wait()?;
    for bucket in buckets {
        assert!(bucket.iter().enumerate().all(|(place, element)| element.to_bits() == bits(place)), "{}", bucket.len());
    }
    Ok(())
}

fn repeats<C: Communicator<Buf = Floats>>(comm: &mut C, buckets: &mut [Floats]) -> Result<(), CommError> {
    for turn in 0..300 {
        let bucket = &mut buckets[3 + turn % 3];
        fill(bucket, comm.rank(), turn);
        comm.all_reduce_sum(&mut [&mut *bucket])?;
        comm.wait()?;
        check(bucket, comm.world(), turn);
        if turn % 5 == 0 {
            comm.barrier()?;
        }
    }
    Ok(())
}
