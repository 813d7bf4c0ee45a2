//! A single token through the network: all threads go through all layers in step, each with its own copy of what is small.

use std::cell::RefCell;
use std::sync::{PoisonError, RwLock};

use super::super::matrix::{Input, Matrix};
use super::super::team::{Member, Shared, together};
use super::{Cache, Network, Seen, add, gate};
use crate::pool::Turn;

/// What a thread keeps from one token to the next.
#[derive(Default)]
struct Own {
    x: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    head: Vec<f32>,
    mixed: Vec<f32>,
    added: Vec<f32>,
    gate_up: Vec<f32>,
    gated: Vec<f32>,
}

/// What the threads tell each other. Between a thread's reading of one and another's writing it again lies a meeting at least.
pub(super) struct Told {
    qkv: Shared,
    mixed: Shared,
    added: Shared,
    gate_up: Shared,
    down: Shared,
}

impl Network {
    /// Appends a token; as [`Network::feed`].
    pub(super) fn token(&self, turn: &Turn<'_>, id: u32, wanted: bool, cache: &mut Cache) -> Option<Vec<f32>> {
        thread_local!(static OWN: RefCell<Own> = RefCell::default());
        let told = &*cache.told.get_or_insert_with(|| self.told());
        let (seen, position) = (&cache.layers, cache.length);
        let logits = together(turn, |member| {
            OWN.with_borrow_mut(|own| {
                self.through(member, id, position, seen, told, own);
                if wanted { self.share_of_logits(member, own) } else { Vec::new() }
            })
        });
        cache.length += 1;
        wanted.then(|| logits.concat())
    }

    fn told(&self) -> Told {
        let spec = &self.spec;
        Told {
            qkv: Shared::new((spec.heads + 2 * spec.kv_heads) * spec.head_size),
            mixed: Shared::new(spec.width),
            added: Shared::new(spec.width),
            gate_up: Shared::new(2 * spec.inner),
            down: Shared::new(spec.width),
        }
    }

    fn through(
        &self,
        member: &Member<'_>,
        id: u32,
        position: usize,
        seen: &[RwLock<Seen>],
        told: &Told,
        own: &mut Own,
    ) {
        let Own { x, normed, qkv, head, mixed, added, gate_up, gated } = own;
        x.resize(self.spec.width, 0.0);
        self.table.row(id as usize, x);
        for (layer, seen) in self.layers.iter().zip(seen) {
            self.norm(x, &layer.attention_norm, normed);
            times(member, &layer.qkv, normed, &told.qkv, qkv);
            self.turn(position, qkv);
            if member.index == 0 {
                seen.write().unwrap_or_else(PoisonError::into_inner).append(self.kept(qkv));
            }
            member.meet();
            let seen = seen.read().unwrap_or_else(PoisonError::into_inner);
            let size = self.spec.head_size;
            head.resize(size, 0.0);
            for number in member.share(self.spec.heads) {
                self.look(number, qkv, position + 1, &seen, head);
                told.mixed.put(number * size, head);
            }
            member.meet();
            told.mixed.get(mixed);
            times(member, &layer.attention_out, mixed, &told.added, added);
            add(x, added);
            self.norm(x, &layer.inner_norm, normed);
            times(member, &layer.gate_up, normed, &told.gate_up, gate_up);
            gate(gate_up, self.spec.inner, gated);
            times(member, &layer.down, gated, &told.down, added);
            add(x, added);
        }
    }

    /// Shares one after the other are all logits: the matrix is one tensor and no stack.
    fn share_of_logits(&self, member: &Member<'_>, own: &mut Own) -> Vec<f32> {
        self.norm(&own.x, &self.norm, &mut own.normed);
        let mut logits = Vec::new();
        let output = self.output.as_ref().unwrap_or(&self.table);
        output.share(member, &Input::new(&own.normed), |_, values| logits.extend_from_slice(values));
        logits
    }
}

/// A product, of which each thread makes its share and has all.
fn times(member: &Member<'_>, matrix: &Matrix, x: &[f32], told: &Shared, out: &mut Vec<f32>) {
    matrix.share(member, &Input::new(x), |row, values| told.put(row, values));
    member.meet();
    told.get(out);
}
