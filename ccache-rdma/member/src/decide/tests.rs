//! Situations, and what is decided in them.

use super::*;

const MS: u64 = 1_000_000;

fn member(slot: u8, incarnation: u64) -> Member {
    Member { slot, incarnation, path: String::new() }
}

fn three() -> Situation {
    let members: Vec<Member> = (0..3).map(|s| member(s, 1)).collect();
    let ids: BTreeSet<u64> = [16, 17, 18].into();
    let mut state = State::default();
    state.apply(&Command::First(members));
    Situation {
        now: 10_000 * MS,
        me: 16,
        state,
        voters: ids.clone(),
        nodes: ids,
        is_decided: true,
        last: 100,
        ..Situation::default()
    }
}

fn report(s: &mut Situation, id: u64, suspects: &[Incarnation]) {
    let findings = Findings { suspects: suspects.to_vec(), ..Findings::default() };
    let report = Report::new(s.timing, s.now, findings, s.reports.get(&id));
    s.reports.insert(id, report);
}

/// Those suspect these for two leases and a little.
fn suspect_for_long(s: &mut Situation, who: &[(u64, &[Incarnation])]) {
    for _ in 0..2 {
        for (id, suspects) in who {
            report(s, *id, suspects);
        }
        s.now += 550 * MS;
    }
    for (id, suspects) in who {
        report(s, *id, suspects);
    }
}

fn evict(slot: u8, incarnation: u64) -> Command {
    Command::Evict { slot, incarnation, ended: Vec::new() }
}

fn evicts(slot: u8, incarnation: u64) -> Option<Step> {
    Some(Step::Propose(evict(slot, incarnation)))
}

#[test]
fn two_of_two_others_evict_and_one_does_not() {
    let mut s = three();
    report(&mut s, 17, &[(2, 1)]);
    assert_eq!(s.decide(), None);
    report(&mut s, 16, &[(2, 1)]);
    assert_eq!(s.decide(), evicts(2, 1));
    s.now += report_age(Timing::default());
    assert_eq!(s.decide(), None, "stale reports");
    report(&mut s, 17, &[(2, 1)]);
    s.now += 500 * MS;
    report(&mut s, 17, &[(2, 1)]);
    assert_eq!(s.decide(), None);
    s.now += 1;
    assert_eq!(s.decide(), evicts(2, 1), "one for long");
    report(&mut s, 17, &[]);
    report(&mut s, 17, &[(2, 1)]);
    assert_eq!(s.decide(), None, "it was taken back meanwhile");
}

#[test]
fn nobody_is_evicted_by_a_minority() {
    let mut s = three();
    suspect_for_long(&mut s, &[(16, &[(1, 1), (2, 1)])]);
    assert_eq!(s.decide(), None);
    let mut two = three();
    two.state.apply(&evict(2, 1));
    two.voters.remove(&18);
    two.nodes.remove(&18);
    suspect_for_long(&mut two, &[(16, &[(1, 1)])]);
    assert_eq!(two.decide(), None, "of two, one is no majority");
}

#[test]
fn of_two_that_cannot_reach_each_other_one_goes_and_the_leader_stays() {
    let mut s = three();
    suspect_for_long(&mut s, &[(16, &[(1, 1)]), (17, &[(0, 1)])]);
    assert_eq!(s.decide(), evicts(1, 1));
    // Also where the leader is neither.
    s.me = 18;
    assert_eq!(s.decide(), evicts(0, 1));
    // Or where nobody can reach the leader, which goes itself.
    let mut s = three();
    suspect_for_long(&mut s, &[(16, &[(1, 1), (2, 1)]), (17, &[(0, 1)]), (18, &[(0, 1)])]);
    assert_eq!(s.decide(), evicts(0, 1));
    // Not at once: whoever says so may be dead itself by now.
    let mut s = three();
    report(&mut s, 16, &[(1, 1)]);
    report(&mut s, 17, &[(0, 1), (2, 1)]);
    report(&mut s, 18, &[(1, 1)]);
    assert_eq!(s.decide(), None);
    s.now += 550 * MS;
    report(&mut s, 16, &[(1, 1)]);
    report(&mut s, 18, &[(1, 1)]);
    assert_eq!(s.decide(), evicts(1, 1));
}

#[test]
fn whoever_has_ended_goes_at_once() {
    let mut s = three();
    let findings = Findings { ended: vec![(1, 1), (3, 9)], ..Findings::default() };
    s.reports.insert(18, Report::new(s.timing, s.now, findings, None));
    let ended = vec![(1, 1)];
    let evict = Command::Evict { slot: 1, incarnation: 1, ended };
    assert_eq!(s.decide(), Some(Step::Propose(evict)));
}

#[test]
fn a_settled_view_is_told_of_once() {
    let mut s = three();
    let revoked = |s: &mut Situation, id: u64, revoked| {
        let findings = Findings { revoked, ..Findings::default() };
        let report = Report::new(s.timing, s.now, findings, s.reports.get(&id));
        s.reports.insert(id, report);
    };
    revoked(&mut s, 16, 1);
    assert_eq!(s.decide(), None, "nothing came before");
    s.state.apply(&evict(1, 1));
    s.voters.remove(&17);
    s.nodes.remove(&17);
    assert_eq!(s.decide(), None, "not yet");
    revoked(&mut s, 16, 2);
    revoked(&mut s, 18, 1);
    s.now += s.timing.over_by();
    assert_eq!(s.decide(), None, "node 2 has not");
    revoked(&mut s, 18, 2);
    s.now += s.timing.over_by() - 1;
    revoked(&mut s, 18, 2);
    assert_eq!(s.decide(), None, "a lease may last until then");
    s.now += 1;
    assert_eq!(s.decide(), Some(Step::Propose(Command::Settled(2))));
    s.state.apply(&Command::Settled(2));
    assert_eq!(s.decide(), None);
}

const WITNESS_ID: u64 = raft_id(WITNESS, 7);

/// Says that the witness is there.
fn witness(s: &mut Situation) {
    s.joins.retain(|(m, _)| m.slot != WITNESS);
    s.joins.push((member(WITNESS, 7), s.now));
}

/// Two nodes and a witness, whole.
fn two_and_witness() -> Situation {
    let mut s = three();
    s.state = State::default();
    s.state.apply(&Command::First(vec![member(0, 1), member(1, 1)]));
    s.voters = [16, 17].into();
    s.nodes = s.voters.clone();
    witness(&mut s);
    assert_eq!(s.decide(), Some(Step::AddLearner(WITNESS_ID)));
    s.nodes.insert(WITNESS_ID);
    assert_eq!(s.decide(), None, "it has no log yet");
    s.matched.insert(WITNESS_ID, 90);
    let voters: BTreeSet<u64> = [16, 17, WITNESS_ID].into();
    assert_eq!(s.decide(), Some(Step::SetVoters(voters.clone())));
    s.voters = voters;
    assert_eq!(s.decide(), Some(Step::Propose(Command::Witness(Some(7)))));
    s.state.apply(&Command::Witness(Some(7)));
    assert_eq!(s.decide(), None);
    assert!(s.state.view.survival().can_lose_a_node());
    s
}

#[test]
fn with_a_witness_one_of_two_goes_on() {
    let mut s = two_and_witness();
    report(&mut s, 16, &[(1, 1)]);
    assert_eq!(s.decide(), evicts(1, 1));
    let mut alone = s.clone();
    alone.now += join_age(alone.timing);
    report(&mut alone, 16, &[(1, 1)]);
    let gone = Some(Step::Propose(Command::Witness(None)));
    assert_eq!(alone.decide(), gone, "the witness is silent");
    s.state.apply(&evict(1, 1));
    assert_eq!(s.decide(), Some(Step::SetVoters([16].into())), "its death would bind it");
    s.voters = [16].into();
    assert_eq!(s.decide(), Some(Step::RemoveLearners([17].into())));
    s.nodes = [16, WITNESS_ID].into();
    assert_eq!(s.decide(), None);
    // Another node comes, and both get their votes at once.
    s.joins.push((member(1, 2), s.now));
    assert_eq!(s.decide(), Some(Step::AddLearner(33)));
    s.nodes.insert(33);
    s.matched.insert(33, 100);
    assert_eq!(s.decide(), Some(Step::SetVoters([16, 33, WITNESS_ID].into())));
}

#[test]
fn of_two_that_suspect_each_other_the_witness_sees_one_go() {
    let mut s = two_and_witness();
    suspect_for_long(&mut s, &[(16, &[(1, 1)]), (17, &[(0, 1)])]);
    witness(&mut s);
    assert_eq!(s.decide(), evicts(1, 1), "the leader stays");
    s.me = WITNESS_ID;
    assert_eq!(s.decide(), evicts(0, 1));
    // But not if the other one has fallen silent: then that goes.
    s.now += silence(s.timing);
    report(&mut s, 16, &[(1, 1)]);
    assert_eq!(s.decide(), evicts(1, 1));
}

/// Where the change of voters was not finished, those before must agree too.
#[test]
fn half_a_change_of_voters_is_no_majority_and_is_finished() {
    let mut s = two_and_witness();
    s.joint = vec![[16, 17].into()];
    let finish = Some(Step::SetVoters([16, 17, WITNESS_ID].into()));
    assert_eq!(s.decide(), finish);
    report(&mut s, 16, &[(1, 1)]);
    assert_eq!(s.decide(), finish, "one of two decides nothing");
    s.is_decided = false;
    assert_eq!(s.decide(), None);
}

#[test]
fn findings_from_elsewhere_are_checked() {
    let with = |suspects| Findings { suspects, ..Findings::default() };
    assert!(with(vec![(15, MAX_INCARNATION)]).well_formed());
    assert!(!with(vec![(16, 1)]).well_formed());
    assert!(!with(vec![(1, MAX_INCARNATION + 1)]).well_formed());
    assert!(!with(vec![(1, 1); 17]).well_formed());
}

#[test]
fn three_nodes_need_no_witness_and_two_of_them_get_it() {
    let mut s = two_and_witness();
    s.joins.push((member(2, 1), s.now));
    s.nodes.insert(18);
    s.matched.insert(18, 100);
    let three = Some(Step::SetVoters([16, 17, 18].into()));
    assert_eq!(s.decide(), three);
    s.voters = [16, 17, 18].into();
    s.state.apply(&Command::Join(member(2, 1)));
    s.joins.retain(|(m, _)| m.slot == WITNESS);
    assert_eq!(s.decide(), None);
    // A witness that is silent can be lost then.
    s.now += join_age(s.timing);
    assert_eq!(s.decide(), Some(Step::Propose(Command::Witness(None))));
    s.state.apply(&Command::Witness(None));
    assert_eq!(s.decide(), Some(Step::RemoveLearners([WITNESS_ID].into())));
    // And comes again, without a vote until one of them is lost.
    witness(&mut s);
    assert_eq!(s.decide(), Some(Step::Propose(Command::Witness(Some(7)))));
    s.state.apply(&Command::Witness(Some(7)));
    s.state.apply(&Command::Settled(s.state.view.epoch));
    let all: Vec<u16> = (0..1024).collect();
    let epoch = s.state.view.epoch;
    s.state.apply(&Command::Rebuilt { slot: 2, epoch, shards: all });
    report(&mut s, 16, &[(1, 1)]);
    report(&mut s, 18, &[(1, 1)]);
    assert_eq!(s.decide(), Some(Step::SetVoters([16, 18, WITNESS_ID].into())));
    s.voters = [16, 18, WITNESS_ID].into();
    s.nodes = s.voters.clone();
    assert_eq!(s.decide(), evicts(1, 1));
    // It gets its vote back where it is trusted again before that.
    let mut trusted = s.clone();
    trusted.calm_since = trusted.now;
    report(&mut trusted, 16, &[]);
    report(&mut trusted, 18, &[]);
    trusted.nodes.insert(17);
    assert_eq!(trusted.decide(), None, "it lacks some of the log");
    trusted.matched.insert(17, 100);
    assert_eq!(trusted.decide(), Some(Step::SetVoters([16, 17, 18].into())));
    trusted.nodes.remove(&17);
    assert_eq!(trusted.decide(), Some(Step::AddLearner(17)));
    // A change of voters that its leader did not finish is finished first.
    let mut joint = s.clone();
    joint.joint = vec![[16, 17, 18].into()];
    assert_eq!(joint.decide(), Some(Step::SetVoters([16, 18, WITNESS_ID].into())));
    joint.is_decided = false;
    assert_eq!(joint.decide(), None, "that has to be decided");
    s.state.apply(&evict(1, 1));
    // Until that is settled node 1 may live, and renew in the memory of the next to go.
    report(&mut s, 16, &[(2, 1)]);
    assert_eq!(s.decide(), None);
    s.state.apply(&Command::Settled(s.state.view.epoch));
    assert_eq!(s.decide(), evicts(2, 1));
}

#[test]
fn a_witness_that_started_again_is_another() {
    let mut s = two_and_witness();
    s.joins = vec![(member(WITNESS, 8), s.now), (member(WITNESS, 7), s.now)];
    assert_eq!(s.decide(), Some(Step::Propose(Command::Witness(None))));
    s.state.apply(&Command::Witness(None));
    let new = raft_id(WITNESS, 8);
    assert_eq!(s.decide(), Some(Step::AddLearner(new)));
    s.nodes.insert(new);
    assert_eq!(s.decide(), Some(Step::SetVoters([16, 17].into())));
    s.voters = [16, 17].into();
    assert_eq!(s.decide(), Some(Step::RemoveLearners([WITNESS_ID].into())));
}

#[test]
fn voters_shrink_and_grow_with_the_view() {
    let mut s = three();
    s.state.apply(&evict(1, 1));
    assert_eq!(s.decide(), Some(Step::SetVoters([16, 18].into())));
    s.voters.remove(&17);
    assert_eq!(s.decide(), Some(Step::RemoveLearners([17].into())));
    s.nodes.remove(&17);
    assert_eq!(s.decide(), None);
    s.joins.push((member(1, 1), s.now));
    assert_eq!(s.decide(), None, "the evicted one's wish is no more than a memory");
    s.joins.push((member(1, 2), s.now));
    assert_eq!(s.decide(), Some(Step::AddLearner(33)));
    s.nodes.insert(33);
    assert_eq!(s.decide(), None, "it has no log yet");
    s.matched.insert(33, 90);
    assert_eq!(s.decide(), Some(Step::SetVoters([16, 18, 33].into())));
    s.voters.insert(33);
    assert_eq!(s.decide(), Some(Step::Propose(Command::Join(member(1, 2)))));
    let mut gave_up = s.clone();
    gave_up.now += join_age(gave_up.timing);
    assert_eq!(gave_up.decide(), Some(Step::SetVoters([16, 18].into())));
    s.state.apply(&Command::Join(member(1, 2)));
    assert_eq!(s.decide(), None);
}

#[test]
fn a_copy_that_counts_no_more_does_not_hide_one_that_does() {
    let mut s = three();
    s.state.apply(&evict(0, 1));
    s.state.apply(&Command::Join(member(0, 2)));
    let early = s.state.view.epoch;
    s.state.apply(&evict(2, 1));
    s.state.apply(&Command::Join(member(2, 2)));
    let now = s.state.view.epoch;
    s.voters = [32, 17, 34].into();
    s.nodes = s.voters.clone();
    let all = || (0..1024).collect::<BTreeSet<u16>>();
    s.rebuilt = [((0, early), all())].into();
    assert_eq!(s.decide(), None, "that report was overtaken");
    s.rebuilt.insert((2, now), all());
    let Some(Step::Propose(command)) = s.decide() else { panic!("nothing is recorded") };
    assert!(s.state.apply(&command).changed, "{command:?}");
}

/// Three nodes, of which node 0 was lost and is back, with all its copies.
fn back() -> Situation {
    let mut s = three();
    s.state.apply(&evict(0, 1));
    s.state.apply(&Command::Join(member(0, 2)));
    let epoch = s.state.view.epoch;
    s.state.apply(&Command::Rebuilt { slot: 0, epoch, shards: (0..1024).collect() });
    s.voters = [32, 17, 18].into();
    s.nodes = s.voters.clone();
    s.calm_since = s.now;
    s
}

#[test]
fn a_node_that_came_back_gets_its_share_when_all_is_calm() {
    let mut s = back();
    assert_eq!(s.state.view.primaries(), [0, 512, 512]);
    let calm = calm(s.timing);
    for share in [128, 256, 341] {
        s.now += calm - 1;
        assert_eq!(s.decide(), None, "too soon");
        s.now += 1;
        let mut busy = s.clone();
        report(&mut busy, 32, &[(2, 1)]);
        assert_eq!(busy.decide(), None, "a suspicion");
        let mut busy = s.clone();
        busy.joins.push((member(3, 1), busy.now));
        assert_eq!(busy.decide(), Some(Step::AddLearner(19)));
        busy.nodes.insert(19);
        assert_eq!(busy.decide(), None, "somebody joins");
        let Some(Step::Propose(command)) = s.decide() else { panic!("nothing is moved") };
        assert!(s.state.apply(&command).changed);
        assert!(!s.state.apply(&command).changed, "twice");
        assert_eq!(s.state.view.primaries()[0], share);
        s.calm_since = s.now;
    }
    s.now += 100 * calm;
    assert_eq!(s.decide(), None, "even");
}

#[test]
fn what_was_asked_for_is_moved_at_once_and_stays() {
    let mut s = back();
    let epoch = s.state.view.epoch;
    s.asked = Some((epoch, 0, (0..1024).collect()));
    let Some(Step::Propose(command)) = s.decide() else { panic!("nothing is moved") };
    s.state.apply(&command);
    assert_eq!(s.state.view.primaries(), [1024, 0, 0]);
    assert_eq!(s.decide(), None, "it was for the view before");
    s.asked = None;
    s.now += 100 * calm(s.timing);
    assert_eq!(s.decide(), None, "so it was wished");
    s.state.apply(&evict(1, 1));
    s.state.apply(&Command::Join(member(1, 2)));
    let epoch = s.state.view.epoch;
    s.state.apply(&Command::Rebuilt { slot: 1, epoch, shards: (0..1024).collect() });
    s.voters = [32, 33, 18].into();
    s.nodes = s.voters.clone();
    let moved = s.decide();
    assert!(matches!(&moved, Some(Step::Propose(Command::Rehome { to: 1, .. }))), "{moved:?}");
}

#[test]
fn a_new_incarnation_ends_the_one_before() {
    let mut s = three();
    s.joins.push((member(2, 2), s.now));
    let evict = Command::Evict { slot: 2, incarnation: 1, ended: vec![(2, 1)] };
    assert_eq!(s.decide(), Some(Step::Propose(evict)));
}

#[test]
fn the_first_view_waits_for_all_and_in_the_end_for_most() {
    let mut s = three();
    s.state = State::default();
    s.leading_since = s.now;
    s.ready = [(16, member(0, 1)), (17, member(1, 1))].into();
    assert_eq!(s.decide(), None);
    s.now += FIRST_WAIT + 1;
    assert!(matches!(s.decide(), Some(Step::Propose(Command::First(m))) if m.len() == 2));
    s.ready.remove(&17);
    assert_eq!(s.decide(), None);
}
