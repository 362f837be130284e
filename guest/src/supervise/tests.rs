//! Named scenarios with a scripted clock; no process, no timer.

use super::*;

/// A machine and the time, with the actions of the last event.
struct Script {
    machine: Machine,
    now: Moment,
}

impl Script {
    fn new(policy: Policy) -> Self {
        Self { machine: Machine::new(policy), now: Duration::from_secs(100) }
    }

    fn envd() -> Self {
        Self::new(Policy {
            readiness: Readiness::Probe,
            start_bound: Some(Duration::from_secs(10)),
            liveness: Some(Liveness {
                every: Duration::from_secs(30),
                bound: Duration::from_secs(15),
                failing_for: Duration::from_secs(60),
            }),
            dump_bound: Some(Duration::from_secs(2)),
            ..Policy::default()
        })
    }

    /// Started and healthy.
    fn serving() -> Self {
        let mut script = Self::envd();
        script.feed(&[Event::Start, Event::Spawned, Event::Executed]);
        script.tick();
        script.feed(&[Event::Listening, Event::Ready]);
        assert_eq!(script.machine.state(), State::Healthy);
        script
    }

    fn on(&mut self, event: Event) -> Vec<Action> {
        self.machine.on(event, self.now)
    }

    fn feed(&mut self, events: &[Event]) -> Vec<Action> {
        events.iter().flat_map(|event| self.machine.on(event.clone(), self.now)).collect()
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// Goes to the next deadline.
    fn tick(&mut self) -> Vec<Action> {
        self.now = self.machine.deadline().expect("a deadline").max(self.now);
        self.on(Event::Tick)
    }

    /// Ticks until an action comes that `wanted` accepts, answering every probe with `answer`.
    fn until(&mut self, answer: &Event, wanted: impl Fn(&Action) -> bool) -> Duration {
        let begin = self.now;
        for _ in 0..10_000 {
            let mut actions = self.tick();
            if actions.contains(&Action::Probe) || actions.contains(&Action::JudgeProbe) {
                actions.extend(self.on(answer.clone()));
            }
            if actions.iter().any(&wanted) {
                return self.now.saturating_sub(begin);
            }
        }
        panic!("it never came");
    }

    fn state(&self) -> State {
        self.machine.state()
    }
}

const REFUSED: Event = Event::ProbeFailed(ProbeFailure::Refused);
const SLOW: Event = Event::ProbeFailed(ProbeFailure::TimedOut);
fn filtered() -> Event {
    Event::Inconclusive("packets do not arrive".to_owned())
}

const FAILED: Event = Event::Exited { success: false };

const ENDED_WELL: Event = Event::Exited { success: true };

fn signals(signal: Signal) -> impl Fn(&Action) -> bool {
    move |action| *action == Action::Signal(signal)
}

#[test]
fn a_start_is_probed_soon_and_leads_to_healthy() {
    let mut script = Script::envd();
    assert!(script.on(Event::Start).contains(&Action::Spawn));
    script.feed(&[Event::Spawned, Event::Executed]);
    assert_eq!(script.tick(), [Action::Probe]);
    script.on(Event::Listening);
    assert_eq!(script.state(), State::Listening);
    script.on(Event::Ready);
    assert_eq!(script.state(), State::Healthy);
}

#[test]
fn one_that_never_listens_is_dumped_then_killed_at_the_start_bound() {
    let mut script = Script::envd();
    script.feed(&[Event::Start, Event::Spawned, Event::Executed]);
    let took = script.until(&REFUSED, signals(Signal::SIGQUIT));
    assert_eq!(took, Duration::from_secs(10));
    assert_eq!(script.machine.reason(), Some("not listening 10 s after its start"));
    assert_eq!(script.until(&REFUSED, signals(Signal::SIGKILL)), Duration::from_secs(2));
    script.on(FAILED);
    assert_eq!(script.state(), State::Backoff);
}

#[test]
fn probes_of_a_start_grow_apart() {
    let mut script = Script::envd();
    script.feed(&[Event::Start, Event::Spawned, Event::Executed]);
    let mut probes = 0;
    while script.state() != State::Stopping {
        probes += usize::from(script.tick().contains(&Action::Probe));
        script.on(REFUSED);
    }
    assert!(probes < 120, "{probes} probes in 10 s");
}

#[test]
fn a_start_is_seen_within_a_tenth_of_the_time_it_took() {
    for serves_after in [20, 50, 300, 1500].map(Duration::from_millis) {
        let mut script = Script::envd();
        script.feed(&[Event::Start, Event::Spawned, Event::Executed]);
        let begin = script.now;
        loop {
            script.tick();
            if script.now.saturating_sub(begin) >= serves_after {
                break;
            }
            script.on(REFUSED);
        }
        let late = script.now.saturating_sub(begin + serves_after);
        assert!(late <= serves_after / 10 + Duration::from_millis(5), "{late:?} after {serves_after:?}");
    }
}

#[test]
fn one_that_answers_late_is_slow_and_not_dead() {
    let mut script = Script::serving();
    for _ in 0..20 {
        assert!(script.tick().contains(&Action::Probe));
        script.pass(Duration::from_secs(14));
        script.on(Event::Ready);
        assert_eq!(script.state(), State::Healthy);
    }
}

#[test]
fn at_rest_only_liveness_wakes_anybody() {
    let script = Script::serving();
    assert_eq!(script.machine.deadline(), Some(script.now + Duration::from_secs(30)));
}

#[test]
fn without_liveness_a_healthy_process_has_no_timer() {
    let mut script = Script::new(Policy { readiness: Readiness::Probe, ..Policy::default() });
    script.feed(&[Event::Start, Event::Spawned, Event::Executed]);
    script.tick();
    script.on(Event::Ready);
    assert_eq!(script.machine.deadline(), None);
}

#[test]
fn a_short_failure_ends_nobody() {
    let mut script = Script::serving();
    script.tick();
    script.on(SLOW);
    assert_eq!(script.state(), State::Unhealthy);
    script.tick();
    script.on(Event::Ready);
    assert_eq!(script.state(), State::Healthy);
}

#[test]
fn failing_over_sixty_seconds_is_ended_with_its_reason() {
    let mut script = Script::serving();
    let took = script.until(&SLOW, signals(Signal::SIGQUIT));
    assert!(took >= Duration::from_secs(90), "30 s to the first probe, then 60 s of failures: {took:?}");
    assert!(script.machine.reason().is_some_and(|why| why.starts_with("listening but not answering for 6")));
}

#[test]
fn a_probe_without_an_answer_counts_as_failed_at_its_bound() {
    let mut script = Script::serving();
    assert_eq!(script.tick(), [Action::Probe]);
    assert_eq!(script.tick(), [Action::JudgeProbe]);
    script.on(SLOW);
    assert_eq!(script.state(), State::Unhealthy);
}

#[test]
fn a_pause_of_ninety_seconds_judges_nobody() {
    let mut script = Script::serving();
    script.tick();
    script.pass(Duration::from_secs(90));
    assert_eq!(script.on(Event::Tick), [Action::AbandonProbe, Action::Probe]);
    assert_eq!(script.state(), State::Healthy);
    script.on(Event::Ready);
    assert_eq!(script.state(), State::Healthy);
}

#[test]
fn a_pause_during_the_start_moves_the_start_bound() {
    let mut script = Script::envd();
    script.feed(&[Event::Start, Event::Spawned, Event::Executed]);
    script.pass(Duration::from_secs(60));
    script.on(Event::Tick);
    assert_eq!(script.state(), State::Starting);
    let took = script.until(&REFUSED, signals(Signal::SIGQUIT));
    assert!(took >= Duration::from_secs(9), "{took:?}");
}

#[test]
fn a_pause_while_unhealthy_does_not_count_as_failing() {
    let mut script = Script::serving();
    script.tick();
    script.on(SLOW);
    script.pass(Duration::from_secs(600));
    script.on(Event::Tick);
    script.on(SLOW);
    assert_eq!(script.state(), State::Unhealthy);
}

#[test]
fn killed_after_a_second_of_health_it_starts_at_once() {
    let mut script = Script::serving();
    script.pass(Duration::from_secs(2));
    assert!(script.on(FAILED).contains(&Action::Spawn));
}

#[test]
fn killed_at_once_it_meets_backoff_that_doubles_to_two_seconds() {
    let mut script = Script::envd();
    script.on(Event::Start);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        script.feed(&[Event::Spawned, Event::Executed, FAILED]);
        let before = script.now;
        assert!(script.tick().contains(&Action::Spawn));
        pauses.push(script.now.saturating_sub(before));
    }
    assert!(pauses[0] <= Duration::from_millis(100) && pauses[0] >= Duration::from_millis(80));
    assert!(pauses[1] > pauses[0] && pauses[2] > pauses[1]);
    assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(2)));
    assert!(pauses[7] >= Duration::from_millis(1600));
}

#[test]
fn backoff_begins_anew_only_after_ten_seconds_of_health() {
    let mut script = Script::envd();
    script.on(Event::Start);
    for _ in 0..6 {
        script.feed(&[Event::Spawned, Event::Executed, FAILED]);
        script.tick();
    }
    script.feed(&[Event::Spawned, Event::Executed, Event::Ready]);
    script.pass(Duration::from_secs(11));
    script.on(FAILED);
    let before = script.now;
    script.feed(&[Event::Spawned, Event::Executed, FAILED]);
    script.tick();
    assert!(script.now.saturating_sub(before) <= Duration::from_millis(100));
}

#[test]
fn it_never_gives_up() {
    let mut script = Script::envd();
    script.on(Event::Start);
    for _ in 0..1000 {
        script.feed(&[Event::SpawnFailed]);
        assert!(script.tick().contains(&Action::Spawn));
    }
    assert_eq!(script.machine.restarts(), 1000);
}

/// A spawn that fails at once was tried again within the same event, for ever.
#[test]
fn without_a_pause_there_is_one_all_the_same() {
    let none = Backoff { first: Duration::ZERO, longest: Duration::ZERO, ..Backoff::default() };
    let mut script = Script::new(Policy { backoff: none, ..Policy::default() });
    script.on(Event::Start);
    let after = script.on(Event::SpawnFailed);
    assert!(!after.contains(&Action::Spawn), "{after:?}");
    assert!(script.machine.deadline().unwrap() > script.now);
}

#[test]
fn a_clean_exit_is_restarted_too() {
    let mut script = Script::serving();
    script.pass(Duration::from_secs(5));
    assert!(script.on(Event::Exited { success: true }).contains(&Action::Spawn));
}

#[test]
fn a_stop_is_term_then_kill_and_is_not_answered_by_a_start() {
    let mut script = Script::serving();
    assert!(script.on(Event::Stop).contains(&Action::Signal(Signal::SIGTERM)));
    assert_eq!(script.tick(), [Action::Signal(Signal::SIGKILL)]);
    script.on(FAILED);
    assert_eq!(script.state(), State::Stopped);
    assert_eq!(script.machine.deadline(), None);
}

#[test]
fn a_stop_during_backoff_is_final() {
    let mut script = Script::envd();
    script.feed(&[Event::Start, Event::Spawned, FAILED, Event::Stop]);
    assert_eq!(script.state(), State::Stopped);
    assert_eq!(script.machine.deadline(), None);
}

#[test]
fn a_stop_before_the_process_is_made_ends_it_as_soon_as_it_is() {
    let mut script = Script::envd();
    script.feed(&[Event::Start, Event::Stop]);
    assert_eq!(script.state(), State::Stopping);
    assert!(script.on(Event::Spawned).contains(&Action::Signal(Signal::SIGTERM)));
    script.on(FAILED);
    assert_eq!(script.state(), State::Stopped);
}

#[test]
fn a_restart_starts_again_without_backoff_once_the_old_one_is_dead() {
    let mut script = Script::serving();
    let actions = script.on(Event::Restart);
    assert!(actions.contains(&Action::Signal(Signal::SIGTERM)) && !actions.contains(&Action::Spawn));
    assert!(script.on(FAILED).contains(&Action::Spawn));
}

#[test]
fn a_start_wished_for_while_stopping_comes_after_the_end() {
    let mut script = Script::serving();
    script.feed(&[Event::Stop, Event::Start]);
    assert!(script.on(FAILED).contains(&Action::Spawn));
}

#[test]
fn a_stop_wished_for_while_restarting_wins() {
    let mut script = Script::serving();
    script.feed(&[Event::Restart, Event::Stop]);
    script.on(FAILED);
    assert_eq!(script.state(), State::Stopped);
}

#[test]
fn a_oneshot_that_ends_well_is_done() {
    let mut script =
        Script::new(Policy { kind: Kind::Oneshot, restart: Restart::OnFailure, ..Policy::default() });
    script.feed(&[Event::Start, Event::Spawned, Event::Executed, Event::Exited { success: true }]);
    assert_eq!(script.state(), State::Exited);
}

#[test]
fn a_oneshot_that_fails_is_tried_again_when_it_shall() {
    let mut script =
        Script::new(Policy { kind: Kind::Oneshot, restart: Restart::OnFailure, ..Policy::default() });
    script.feed(&[Event::Start, Event::Spawned, Event::Executed, FAILED]);
    assert_eq!(script.state(), State::Backoff);
}

#[test]
fn a_oneshot_that_hangs_is_ended_at_its_bound() {
    let policy =
        Policy { kind: Kind::Oneshot, start_bound: Some(Duration::from_secs(3)), ..Policy::default() };
    let mut script = Script::new(policy);
    script.feed(&[Event::Start, Event::Spawned, Event::Executed]);
    assert!(script.tick().contains(&Action::Signal(Signal::SIGKILL)));
    script.on(FAILED);
    assert_eq!(script.state(), State::Backoff);
}

#[test]
fn one_that_was_ended_at_its_bound_is_not_started_again_where_it_never_shall() {
    for kind in [Kind::Oneshot, Kind::LongRunning] {
        let mut script = Script::new(Policy {
            kind,
            restart: Restart::Never,
            readiness: Readiness::Notify,
            start_bound: Some(Duration::from_secs(3)),
            ..Policy::default()
        });
        script.feed(&[Event::Start, Event::Spawned, Event::Executed]);
        assert!(script.tick().contains(&Action::Signal(Signal::SIGKILL)));
        script.on(FAILED);
        assert_eq!((script.state(), script.machine.deadline()), (State::Exited, None), "{kind:?}");
    }
}

#[test]
fn long_health_spares_no_pause_where_pauses_are_somebodys_wish() {
    let first = Duration::from_secs(60);
    let backoff = Backoff { first, longest: first, none_after: None, ..Backoff::default() };
    let mut script = Script::new(Policy { backoff, ..Policy::default() });
    script.feed(&[Event::Start, Event::Spawned, Event::Executed]);
    script.pass(Duration::from_secs(3600));
    script.on(FAILED);
    assert_eq!(script.state(), State::Backoff);
    assert!(script.machine.deadline().unwrap() >= script.now + first * 4 / 5);
}

#[test]
fn a_service_without_readiness_runs_once_executed() {
    let mut script = Script::new(Policy::default());
    script.feed(&[Event::Start, Event::Spawned, Event::Executed]);
    assert_eq!(script.state(), State::Healthy);
    assert_eq!(script.machine.deadline(), None);
}

#[test]
fn one_that_notifies_waits_for_its_word() {
    let mut script = Script::new(Policy { readiness: Readiness::Notify, ..Policy::default() });
    script.feed(&[Event::Start, Event::Spawned, Event::Executed]);
    assert_eq!(script.state(), State::Starting);
    script.on(Event::Ready);
    assert_eq!(script.state(), State::Healthy);
}

#[test]
fn a_probe_under_way_is_abandoned_when_the_process_ends() {
    let mut script = Script::serving();
    script.tick();
    script.pass(Duration::from_millis(200));
    assert_eq!(script.on(FAILED)[0], Action::AbandonProbe);
}

#[test]
fn an_answer_that_comes_while_stopping_changes_nothing() {
    let mut script = Script::serving();
    script.on(Event::Stop);
    script.feed(&[Event::Ready, Event::Listening, REFUSED]);
    assert_eq!(script.state(), State::Stopping);
}

#[test]
fn a_probe_that_proves_nothing_leaves_a_healthy_process_alone_for_ever() {
    let mut script = Script::serving();
    for _ in 0..100 {
        let actions = script.tick();
        assert!(actions.contains(&Action::Probe), "{actions:?}");
        assert_eq!(script.tick(), [Action::JudgeProbe]);
        assert_eq!(script.on(filtered()), []);
        assert_eq!(script.state(), State::Healthy);
    }
}

#[test]
fn a_probe_that_proves_nothing_ends_a_run_of_failures() {
    let mut script = Script::serving();
    script.until(&SLOW, |action| matches!(action, Action::Became(State::Unhealthy, _)));
    script.pass(Duration::from_secs(1));
    for _ in 0..9 {
        script.tick();
        script.on(SLOW);
    }
    assert_eq!(script.state(), State::Unhealthy, "45 s and more of failures");
    script.tick();
    assert!(matches!(&script.on(filtered())[..], [Action::Became(State::Healthy, Some(_))]));
    let took = script.until(&SLOW, signals(Signal::SIGQUIT));
    assert!(took >= Duration::from_secs(60), "the count begins anew: {took:?}");
}

#[test]
fn one_that_cannot_be_asked_until_its_bound_is_taken_for_healthy() {
    let mut script = Script::envd();
    script.feed(&[Event::Start, Event::Spawned, Event::Executed]);
    let took = script.until(&filtered(), |action| matches!(action, Action::Became(State::Healthy, Some(_))));
    assert_eq!(took, Duration::from_secs(10), "until then it may yet be asked");
    assert_eq!(script.machine.deadline(), Some(script.now + Duration::from_secs(30)));
}

#[test]
fn one_that_is_seen_not_to_listen_at_its_bound_is_ended_whatever_was_unclear_before() {
    let mut script = Script::envd();
    script.feed(&[Event::Start, Event::Spawned, Event::Executed]);
    script.tick();
    script.on(filtered());
    script.until(&REFUSED, signals(Signal::SIGQUIT));
    assert_eq!(script.machine.reason(), Some("not listening 10 s after its start"));
}

#[test]
fn the_last_probe_of_a_start_is_over_before_its_bound() {
    let policy = Policy {
        readiness: Readiness::Probe,
        start_bound: Some(Duration::from_secs(3)),
        ..Policy::default()
    };
    let mut script = Script::new(policy);
    script.feed(&[Event::Start, Event::Spawned, Event::Executed]);
    script.until(&SLOW, signals(Signal::SIGKILL));
    assert_eq!(script.machine.reason(), Some("listening but not answering 3 s after its start"));
}

#[test]
fn one_that_fails_is_asked_every_five_seconds_and_after_that_as_before() {
    let mut script = Script::serving();
    script.tick();
    script.on(SLOW);
    assert_eq!(script.machine.deadline(), Some(script.now + Duration::from_secs(5)));
    script.tick();
    script.on(Event::Ready);
    assert_eq!(script.machine.deadline(), Some(script.now + Duration::from_secs(30)));
}

#[test]
fn one_that_hung_after_long_health_is_started_again_at_once() {
    let mut script = Script::serving();
    script.until(&SLOW, signals(Signal::SIGQUIT));
    assert!(script.on(FAILED).contains(&Action::Spawn));
}

#[test]
fn one_that_hangs_is_asked_for_its_dump_once_and_killed_once() {
    let mut script = Script::serving();
    script.until(&SLOW, signals(Signal::SIGQUIT));
    assert_eq!(script.tick(), [Action::Signal(Signal::SIGKILL)]);
    assert_eq!(script.machine.deadline(), None, "nothing is left but to reap it");
}

#[test]
fn a_stop_while_a_hanging_one_is_ended_is_final() {
    let mut script = Script::serving();
    script.until(&SLOW, signals(Signal::SIGQUIT));
    assert_eq!(script.on(Event::Stop), [], "it is being ended already");
    script.on(FAILED);
    assert_eq!(script.state(), State::Stopped);
}

#[test]
fn a_second_stop_sends_no_second_signal() {
    let mut script = Script::serving();
    script.on(Event::Stop);
    assert_eq!(script.on(Event::Stop), []);
}

#[test]
fn a_stop_of_an_unhealthy_one_abandons_its_probe() {
    let mut script = Script::serving();
    script.tick();
    script.on(SLOW);
    script.tick();
    let actions = script.on(Event::Stop);
    assert_eq!(actions[0], Action::AbandonProbe);
    assert!(actions.contains(&Action::Signal(Signal::SIGTERM)));
}

#[test]
fn a_stop_of_one_that_could_not_be_made_is_over_at_once() {
    let mut script = Script::envd();
    script.feed(&[Event::Start, Event::SpawnFailed, Event::Stop]);
    assert_eq!(script.state(), State::Stopped);
}

#[test]
fn a_start_or_restart_does_not_wait_for_the_backoff() {
    for wish in [Event::Start, Event::Restart] {
        let mut script = Script::envd();
        script.feed(&[Event::Start, Event::Spawned, Event::Executed, FAILED]);
        assert_eq!(script.state(), State::Backoff);
        assert!(script.on(wish).contains(&Action::Spawn));
        assert_eq!(script.state(), State::Starting);
    }
}

#[test]
fn a_restart_of_one_that_is_only_starting_ends_it_first() {
    let mut script = Script::envd();
    script.feed(&[Event::Start, Event::Spawned, Event::Executed]);
    let actions = script.on(Event::Restart);
    assert!(actions.contains(&Action::Signal(Signal::SIGTERM)) && !actions.contains(&Action::Spawn));
    assert!(script.on(ENDED_WELL).contains(&Action::Spawn));
}

#[test]
fn a_restart_that_finds_a_hanging_one_kills_it_at_the_stop_bound() {
    let mut script = Script::serving();
    script.on(Event::Restart);
    let before = script.now;
    assert_eq!(script.tick(), [Action::Signal(Signal::SIGKILL)]);
    assert_eq!(script.now.saturating_sub(before), Policy::default().stop_bound);
    assert!(script.on(FAILED).contains(&Action::Spawn));
}

#[test]
fn a_start_of_one_that_runs_changes_nothing() {
    let mut script = Script::serving();
    assert_eq!(script.on(Event::Start), []);
    assert_eq!(script.machine.restarts(), 0);
}

#[test]
fn one_that_listens_and_dies_before_it_is_healthy_meets_backoff() {
    let mut script = Script::envd();
    script.feed(&[Event::Start, Event::Spawned, Event::Executed]);
    script.tick();
    script.feed(&[Event::Listening, FAILED]);
    assert_eq!(script.state(), State::Backoff);
}

#[test]
fn one_that_dies_half_a_second_after_it_was_healthy_meets_backoff() {
    let mut script = Script::serving();
    script.pass(Duration::from_millis(500));
    assert!(!script.on(FAILED).contains(&Action::Spawn));
    assert_eq!(script.state(), State::Backoff);
}

#[test]
fn backoff_and_start_fit_into_the_ten_seconds_that_the_relay_holds() {
    let longest = Backoff::default().longest;
    let mut script = Script::envd();
    script.on(Event::Start);
    for _ in 0..50 {
        script.feed(&[Event::Spawned, Event::Executed, FAILED]);
        let before = script.now;
        script.tick();
        assert!(script.now.saturating_sub(before) <= longest);
    }
    assert!(longest * 2 < Duration::from_secs(10));
}

#[test]
fn two_that_fail_together_do_not_start_together() {
    let pause = |nanos: u64| {
        let mut script = Script::envd();
        script.now += Duration::from_nanos(nanos);
        script.feed(&[Event::Start, Event::Spawned, Event::Executed, FAILED]);
        script.machine.deadline().map(|at| at.saturating_sub(script.now))
    };
    assert_ne!(pause(1_000), pause(2_000));
}

#[test]
fn a_backoff_that_comes_late_is_no_reason_to_wait_longer() {
    let mut script = Script::envd();
    script.feed(&[Event::Start, Event::Spawned, Event::Executed, FAILED]);
    script.pass(Duration::from_secs(90));
    assert!(script.on(Event::Tick).contains(&Action::Spawn));
}

#[test]
fn a_kill_that_comes_late_is_sent_all_the_same() {
    let mut script = Script::serving();
    script.on(Event::Stop);
    script.pass(Duration::from_secs(90));
    assert!(script.on(Event::Tick).contains(&Action::Signal(Signal::SIGKILL)));
}

#[test]
fn a_little_late_is_not_paused() {
    let mut script = Script::serving();
    assert_eq!(script.tick(), [Action::Probe]);
    script.pass(Duration::from_millis(15_900));
    assert_eq!(script.on(Event::Tick), [Action::JudgeProbe]);
}

#[test]
fn pauses_do_not_count_into_the_time_of_failing() {
    let mut script = Script::serving();
    script.tick();
    script.on(SLOW);
    for _ in 0..11 {
        script.pass(Duration::from_secs(300));
        script.on(Event::Tick);
        script.on(SLOW);
        assert_eq!(script.state(), State::Unhealthy, "5 s of each five minutes count");
    }
}

#[test]
fn an_answer_that_comes_with_the_end_is_dropped() {
    let mut script = Script::serving();
    script.on(FAILED);
    let starts = script.machine.restarts();
    script.feed(&[Event::Ready, SLOW, filtered()]);
    assert_eq!((script.state(), script.machine.restarts()), (State::Backoff, starts));
}

#[test]
fn one_that_is_restarted_on_failure_only_rests_after_a_good_end() {
    let policy = Policy { restart: Restart::OnFailure, ..Policy::default() };
    let mut script = Script::new(policy);
    script.feed(&[Event::Start, Event::Spawned, Event::Executed, ENDED_WELL]);
    assert_eq!(script.state(), State::Exited);
    script.feed(&[Event::Start, Event::Spawned, Event::Executed, FAILED]);
    assert_eq!(script.state(), State::Backoff);
}

#[test]
fn one_that_is_never_restarted_stays_down_until_it_is_started() {
    let mut script = Script::new(Policy { restart: Restart::Never, ..Policy::default() });
    script.feed(&[Event::Start, Event::Spawned, Event::Executed, FAILED]);
    assert_eq!((script.state(), script.machine.deadline()), (State::Exited, None));
    assert!(script.on(Event::Start).contains(&Action::Spawn));
}

#[test]
fn the_reason_of_an_end_is_told_until_the_next_start() {
    let mut script = Script::serving();
    script.until(&SLOW, signals(Signal::SIGQUIT));
    assert!(script.machine.reason().is_some());
    script.on(FAILED);
    assert_eq!(script.machine.reason(), None, "the new process has given none");
}

#[test]
fn each_start_has_its_own_moment_and_is_counted() {
    let mut script = Script::serving();
    let first = script.machine.started();
    script.pass(Duration::from_secs(20));
    script.on(FAILED);
    assert_eq!(script.machine.restarts(), 1);
    assert_eq!(script.machine.started(), first + script.now.saturating_sub(first));
}
