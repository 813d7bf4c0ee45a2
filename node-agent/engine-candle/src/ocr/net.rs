//! A network as a list of layers that run one after the other, and a run that can pause between any two.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::map::{Map, Maps, Shape, Slot};

/// One step of a network: reads maps, writes one. All threads of the pool it runs in take part.
pub(crate) trait Layer: Send + Sync {
    /// Runs it.
    fn run(&self, maps: &mut Maps);

    /// Its name in profiles.
    fn name(&self) -> String;
}

/// Sets of maps that wait for the next run; one set serves one run at a time.
const SPARE_MAX: usize = 2;
/// A larger set is given back to the system: it was for an unusual page, or for very many lines.
const SPARE_BYTES_MAX: usize = 128 << 20;

/// Layers with their weights.
pub(crate) struct Network {
    layers: Vec<Box<dyn Layer>>,
    slots: usize,
    spare: Mutex<Vec<Maps>>,
}

impl Network {
    /// `slots` is one more than the highest that a layer uses.
    pub(crate) fn new(layers: Vec<Box<dyn Layer>>, slots: usize) -> Self {
        Self { layers, slots, spare: Mutex::new(Vec::new()) }
    }

    fn spare(&self) -> std::sync::MutexGuard<'_, Vec<Maps>> {
        // A panic elsewhere leaves buffers whose contents don't matter.
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One pass through a network.
pub(crate) struct Run {
    network: Arc<Network>,
    maps: Maps,
    next: usize,
}

impl Run {
    /// `fill` writes the input into a map of `shape` in slot 0: row by row, without its border.
    pub(crate) fn new(network: &Arc<Network>, shape: Shape, input: &[f32]) -> Self {
        let mut maps = network.spare().pop().unwrap_or_else(|| Maps::new(network.slots));
        let mut map = maps.take(Slot(0));
        map.prepare(shape);
        let row = shape.width * shape.channels;
        for (piece, values) in map.pieces(shape.width.max(1)).into_iter().zip(input.chunks_exact(row.max(1))) {
            piece.out.copy_from_slice(values);
        }
        maps.put(Slot(0), map);
        Self { network: Arc::clone(network), maps, next: 0 }
    }

    /// Runs layers until `budget` is spent, at least one; true when all have run. To be called within a thread pool.
    pub(crate) fn step(&mut self, budget: Duration) -> bool {
        let begun = Instant::now();
        while let Some(layer) = self.network.layers.get(self.next) {
            layer.run(&mut self.maps);
            self.next += 1;
            if begun.elapsed() >= budget {
                break;
            }
        }
        self.next == self.network.layers.len()
    }

    /// As [`Run::step`] without a limit, telling each layer's name and time.
    pub(crate) fn profile(&mut self, mut tell: impl FnMut(&str, Duration)) {
        while let Some(layer) = self.network.layers.get(self.next) {
            let begun = Instant::now();
            layer.run(&mut self.maps);
            tell(&layer.name(), begun.elapsed());
            self.next += 1;
        }
    }

    /// The map in a slot.
    pub(crate) fn map(&self, slot: Slot) -> &Map {
        self.maps.get(slot)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let mut spare = self.network.spare();
        if spare.len() < SPARE_MAX && self.maps.bytes() <= SPARE_BYTES_MAX {
            spare.push(std::mem::take(&mut self.maps));
        }
    }
}
