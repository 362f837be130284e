//! envd's version, for the status that our PID 1 or, in keep mode, we ourselves give.

use guest::clock::{self, Moment};
use guest::sys::Reaped;
use tracing::debug;

use super::{Supervisor, VERSION};
use crate::version::{self, Due, Question};

impl Supervisor {
    /// Of the program that was just executed, as far as it is known.
    pub(super) fn recall_version(&mut self) {
        let program = self.status.pid.and_then(version::identity);
        self.status.version = program.and_then(|program| self.version.version(program)).map(str::to_owned);
    }

    /// envd serves: the moment to look whether it is still the program that was asked. One that was upgraded in place is not.
    pub(super) fn look_at_version(&mut self) {
        let is_asked_for = self.keep.is_some() || self.reporter.is_ours();
        let program = self.status.pid.and_then(version::identity).filter(|_| is_asked_for);
        let Some(program) = program else { return };
        self.version.serves(program, clock::now());
        self.tell_version();
    }

    pub(super) fn ask_version(&mut self, now: Moment) {
        match (self.version.tick(now), self.status.pid) {
            (Some(Due::Ask), Some(pid)) => match Question::ask(pid, &self.reactor, VERSION) {
                Ok(question) => self.question = Some(question),
                Err(why) => {
                    debug!("envd is not asked for its version: {why}");
                    self.version.answered(None, now);
                }
            },
            (Some(Due::Ask), None) => self.version.answered(None, now),
            (Some(Due::Kill), _) => self.question.iter().for_each(Question::kill),
            (None, _) => {}
        }
    }

    /// Takes the answer, where it is the one that was asked that has ended.
    pub(super) fn take_version(&mut self, end: Reaped) {
        let Some(question) = self.question.take_if(|question| question.is(end.pid)) else { return };
        self.version.answered(question.answer(end), clock::now());
        self.tell_version();
    }

    fn tell_version(&mut self) {
        let before = self.status.version.take();
        self.recall_version();
        if self.status.version != before {
            self.reporter.changed(&self.status);
        }
    }
}
