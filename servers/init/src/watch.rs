//! Which node incarnations are dead, as a step function over the views that this node sees.

/// Node slots.
const SLOTS: usize = 16;

/// What has been seen of each slot.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// The highest incarnation known, and whether it is in the view.
    seen: [Option<(u64, bool)>; SLOTS],
}

impl Watch {
    /// Nothing seen yet.
    pub fn new() -> Watch {
        Watch::default()
    }

    /// A node's own word on its incarnation, from its record: counts until a view says otherwise.
    pub fn recorded(&mut self, slot: u8, incarnation: u64) {
        if let Some(s) = self.seen.get_mut(usize::from(slot))
            && s.is_none_or(|(known, _)| known < incarnation)
        {
            *s = Some((incarnation, true));
        }
    }

    /// A view: its members as (slot, incarnation). Returns (slot, highest dead incarnation) for each
    /// slot that lost one; a member's earlier incarnations are dead too.
    pub fn view(&mut self, members: &[(u8, u64)]) -> Vec<(u8, u64)> {
        let mut lost = Vec::new();
        for (slot, seen) in self.seen.iter_mut().enumerate() {
            let slot = slot as u8;
            let now = members.iter().filter(|(s, _)| *s == slot).map(|(_, i)| *i).max();
            match (now, *seen) {
                // An older view, or the same.
                (Some(now), Some((known, _))) if now <= known => {}
                (Some(now), _) => {
                    if let Some(before) = now.checked_sub(1) {
                        lost.push((slot, before));
                    }
                    *seen = Some((now, true));
                }
                (None, Some((known, true))) => {
                    lost.push((slot, known));
                    *seen = Some((known, false));
                }
                (None, _) => {}
            }
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_goes_is_lost_once() {
        let mut w = Watch::new();
        assert_eq!(w.view(&[(0, 0), (1, 0)]), []);
        assert_eq!(w.view(&[(0, 0)]), [(1, 0)]);
        assert_eq!(w.view(&[(0, 0)]), []);
    }

    #[test]
    fn a_rejoined_member_buries_its_earlier_incarnations() {
        let mut w = Watch::new();
        assert_eq!(w.view(&[(0, 1), (1, 4)]), [(0, 0), (1, 3)]);
        // Death and return between two looks.
        assert_eq!(w.view(&[(0, 1), (1, 6)]), [(1, 5)]);
        // A node that was never seen before.
        assert_eq!(w.view(&[(0, 1), (1, 6), (2, 3)]), [(2, 2)]);
    }

    #[test]
    fn a_recorded_node_that_is_in_no_view_is_lost() {
        let mut w = Watch::new();
        w.recorded(2, 7);
        w.recorded(0, 1);
        assert_eq!(w.view(&[(0, 1)]), [(2, 7)]);
    }

    #[test]
    fn slots_out_of_range_are_ignored() {
        let mut w = Watch::new();
        w.recorded(200, 1);
        assert_eq!(w.view(&[(200, 1)]), []);
    }
}
