//! One step of every rank: compute above, gradient buckets below.

use crate::record::{Analysis, Bucket, Lane};

use super::NARROW_BELOW;
use super::axis::{Scale, ticks, time_unit};
use super::phases::parts;
use super::scene::{Align, EDGE, Face, Ink, Scene};

/// Lanes and buckets beyond these are not drawn, and the subtitle says so.
const LANES_MAX: usize = 16;
const BUCKETS_MAX: usize = 400;
/// Bars that hold the buckets of one lane: neighbours in time get different ones.
const TRACKS_MAX: usize = 6;

const COMPUTE: f64 = 20.0;
const TRACK: f64 = 8.0;

pub(super) fn scene(runs: &[&Analysis], width: f64) -> Option<Scene> {
    let timeline = runs.first()?.timeline.as_ref()?;
    let lanes: Vec<&Lane> = timeline.lanes.iter().take(LANES_MAX).collect();
    let end = lanes.iter().map(|lane| lane_end(lane)).reduce(f64::max).filter(|end| 0.0 < *end)?;
    let (size, unit) = time_unit(end);
    let trial = Face::BODY.shortened(&timeline.trial, 180.0);
    let mut subtitle = format!("Step {} of {trial}, {unit} since its first rank began", timeline.step);
    if LANES_MAX < timeline.lanes.len() {
        subtitle.push_str(&format!("; the first {LANES_MAX} of {} ranks", timeline.lanes.len()));
    }
    if lanes.iter().any(|lane| BUCKETS_MAX < lane.buckets.len()) {
        subtitle.push_str(&format!("; the first {BUCKETS_MAX} buckets of each rank"));
    }
    let (mut scene, top) = Scene::titled(width, "Buckets of one step", &subtitle);
    let mut entries = parts(&lanes.first()?.phases).map(|(name, ink, _)| (ink, name)).to_vec();
    entries.push((Ink::Purple, "bucket: thin waits, solid moves"));
    let top = scene.legend(top - 2.0, &entries) + 10.0;

    let left = EDGE + 56.0;
    let x = Scale::new((0.0, end), (left, width - EDGE - 8.0));
    let heights = lanes.iter().map(|lane| lane_height(lane));
    let bottom = top + heights.sum::<f64>();
    let (values, decimals) = ticks(0.0, end / size, if width < NARROW_BELOW { 4 } else { 8 });
    for value in values {
        let at = x.at(value * size);
        scene.line((at, top - 4.0), (at, bottom), 1.0, Ink::Grid);
        scene.text((at, bottom + 16.0), Align::Middle, Face::BODY, Ink::Text, &format!("{value:.decimals$}"));
    }
    let mut y = top;
    for lane in lanes {
        draw_lane(&mut scene, lane, y, &x);
        y += lane_height(lane);
    }
    scene.height = bottom + 30.0;
    Some(scene)
}

fn lane_end(lane: &Lane) -> f64 {
    let computed = parts(&lane.phases).iter().fold(lane.start_s.0, |end, (_, _, time)| end + time.0);
    lane.buckets.iter().map(|bucket| bucket.end_s.0).fold(computed, f64::max)
}

/// The track of each bucket: the first that is free when it becomes ready, else the last.
fn tracks(buckets: &[Bucket]) -> Vec<usize> {
    let mut free_at: Vec<f64> = Vec::new();
    let place = |bucket: &Bucket| {
        let free = free_at.iter().position(|end| *end <= bucket.ready_s.0);
        let track = free.unwrap_or_else(|| {
            if free_at.len() < TRACKS_MAX {
                free_at.push(0.0);
            }
            free_at.len() - 1
        });
        free_at[track] = bucket.end_s.0;
        track
    };
    buckets.iter().take(BUCKETS_MAX).map(place).collect()
}

fn lane_height(lane: &Lane) -> f64 {
    let used = tracks(&lane.buckets).into_iter().max().map_or(0, |last| last + 1);
    COMPUTE + 3.0 + used as f64 * (TRACK + 2.0) + 14.0
}

fn draw_lane(scene: &mut Scene, lane: &Lane, top: f64, x: &Scale) {
    let name = format!("rank {}", lane.rank);
    scene.text((EDGE, top + COMPUTE / 2.0 + 4.5), Align::Start, Face::STRONG, Ink::Text, &name);
    let mut begun = lane.start_s.0;
    for (_, ink, time) in parts(&lane.phases) {
        if 0.0 < time.0 {
            scene.rect((x.at(begun), top), (x.at(begun + time.0) - 0.5, top + COMPUTE), ink);
        }
        begun += time.0;
    }
    for (bucket, track) in lane.buckets.iter().zip(tracks(&lane.buckets)) {
        let y = top + COMPUTE + 4.0 + track as f64 * (TRACK + 2.0);
        let (ready, start, end) = (x.at(bucket.ready_s.0), x.at(bucket.start_s.0), x.at(bucket.end_s.0));
        scene.rect((ready, y + TRACK / 2.0 - 1.0), (start, y + TRACK / 2.0 + 1.0), Ink::Purple);
        scene.rect((start, y), (end.max(start + 1.0), y + TRACK), Ink::Purple);
    }
}
