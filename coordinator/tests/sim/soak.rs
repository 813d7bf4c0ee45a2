//! Large worlds: hundreds of nodes under faults, and a million jobs of which none is lost.

use super::world::{Mode, Size, Totals};
use super::{Deadline, run_world, soaks};

/// Jobs that a soak has accepted before it ends.
const JOBS: u64 = 1_000_000;

#[test]
fn hundreds_of_nodes_under_faults_break_no_invariant_and_end() {
    let nodes = if soaks() { 2_000 } else { 300 };
    for mode in [Mode::Safety, Mode::Liveness] {
        let size = Size { nodes: Some(nodes), documents: 600, jobs: 4 };
        // One world may have little to do: its leader frozen half the time, its jobs small.
        let mut totals = Totals::default();
        for seed in 4_700..4_720 {
            totals.add(run_world(seed, mode, size));
        }
        println!("{mode:?}, {nodes} nodes: {totals:?}");
        assert!(totals.deaths > 100 && totals.cuts > 100 && totals.dispatches > 50, "little happened: {totals:?}");
    }
}

#[test]
fn a_million_jobs_and_none_is_lost() {
    if !soaks() {
        println!("skipped: a million jobs take hours; INGLE_SOAK=1 runs them");
        return;
    }
    let deadline = Deadline::from_environment();
    // Small jobs, many in one world: each world is gone before the next, so that memory stays what one takes.
    let size = Size { nodes: None, documents: 3, jobs: 300 };
    let mut totals = Totals::default();
    for seed in 1_000_000u64.. {
        if totals.jobs >= JOBS {
            break;
        }
        if deadline.over() {
            println!("skipped: {} of {JOBS} jobs, the time was over", JOBS.saturating_sub(totals.jobs));
            break;
        }
        totals.add(run_world(seed, Mode::Liveness, size));
    }
    println!("{} jobs: {totals:?}", totals.jobs);
    assert!(totals.jobs > 0, "{totals:?}");
}

#[test]
fn many_small_jobs_in_one_world_end() {
    let totals = run_world(77, Mode::Liveness, Size { nodes: None, documents: 3, jobs: 100 });
    assert!(totals.jobs >= 100, "{totals:?}");
}
