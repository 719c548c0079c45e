//! Notices for whoever reads the log, and how often they are given.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    catalog::{assignment::claims::Contest, breaker::Lost, narrowing, report::Quarantine, vips::Vips},
    istio::rule::Invalid,
    model::Millis,
    translate::payload::Reject,
};

/// A notice of one reason and subject is given once in this span.
const SPAN: Millis = 60_000;
/// Subjects of one reason in this span; notices of others are counted.
const SUBJECTS: usize = 20;

/// Something that an operator wants to know; a line in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A payload is of no known form, or not allowed.
    PayloadNotServed {
        /// The service.
        id: Arc<str>,
        /// Why.
        reason: Reject,
        /// The start of the payload.
        sample: Box<str>,
    },
    /// A service's newest form cannot be made.
    Quarantined {
        /// The service, or `application://<host>` for an application's entry.
        id: Arc<str>,
        /// Why.
        why: Quarantine,
        /// Whether an older form is served on.
        kept: bool,
    },
    /// Istio would refuse a service with some of its endpoints; it is served without them.
    EndpointsLeftOut {
        /// The service.
        id: Arc<str>,
        /// How many endpoints.
        count: u32,
        /// The rule, and what breaks it in the first of them.
        invalid: Invalid,
    },
    /// A service is served under another host than before.
    HostChanged {
        /// The service.
        id: Arc<str>,
        /// The host before.
        was: Box<str>,
        /// The host from now on.
        is: Box<str>,
    },
    /// A service is served under another virtual address than before, and the same host.
    VipChanged {
        /// The service.
        id: Arc<str>,
        /// The addresses before.
        was: Vips,
        /// The addresses from now on.
        is: Vips,
    },
    /// Several services want one host or virtual address.
    PlaceContested {
        /// The host or address.
        name: Arc<str>,
        /// Who has it, and who would rather have it than what they have.
        contest: Contest<Arc<str>>,
    },
    /// Two applications publish one address and port.
    AddressContested {
        /// The address.
        address: IpAddr,
        /// The port.
        port: u16,
        /// The application that has it.
        newest: Option<Box<str>>,
        /// All that publish it.
        claimed_by: BTreeSet<Box<str>>,
    },
    /// With `direct.balance: mesh` a publisher names an address that is not its own.
    AddressNotOwn {
        /// The service.
        id: Arc<str>,
        /// The address.
        address: IpAddr,
        /// The port.
        port: u16,
        /// The application that the publisher names.
        application: Box<str>,
    },
    /// `policy.mtls` names some addresses of an application's entry, but not all.
    MtlsMixed {
        /// The application.
        application: Box<str>,
        /// The port of the entry.
        port: u16,
    },
    /// The first complete view is held back, since so much less is in it than another session server serves.
    FirstViewHeld(Lost),
    /// The first complete view counts, and there is nothing to judge it against.
    NoBaseline,
    /// Removals are withheld from now on; this is missing.
    MassDeleteHeld(Lost),
    /// Removals that go though they are too many, since more is withheld already than may be.
    MassDeleteNotHeld(Lost),
    /// Removals are no longer withheld.
    MassDeleteOver {
        /// Why.
        why: &'static str,
        /// Of how many services something was withheld.
        services: usize,
    },
    /// New services wait from now on.
    MassAddHeld {
        /// How many came within a minute.
        services: usize,
        /// Whose new services wait, if those of others do not.
        tenant: Option<Box<str>>,
    },
    /// New services no longer wait.
    MassAddOver {
        /// Why.
        why: &'static str,
        /// How many waited.
        services: usize,
    },
    /// Services that fewer would see stay with who sees them, from now on.
    NarrowingHeld(narrowing::Held),
    /// Services go from who needs them no more.
    NarrowingOver {
        /// Why.
        why: &'static str,
    },
    /// Services of the registry cannot be read.
    ServicesUnknown {
        /// How many are served in their last good form.
        kept: usize,
        /// How many have none and are not served.
        missing: usize,
        /// Some of their dataInfoIds.
        names: Box<str>,
    },
    /// Every service of the registry could be read.
    ServicesKnown,
    /// Serving starts.
    ViewComplete {
        /// Services with or without endpoints.
        services: usize,
        /// The endpoints of all services.
        endpoints: usize,
    },
    /// There is a freeze of all session servers, and nothing that could stay as it is.
    NothingToFreeze,
    /// The last good state is served until the view is complete.
    LastGoodServed,
    /// The last good state is older than it may be.
    LastGoodTooOld {
        /// How old it is, in milliseconds.
        age: Millis,
        /// How old it may be, in milliseconds.
        most: Millis,
    },
    /// Notices that were not given since a notice of their kind was given last.
    LeftOut {
        /// The event of these notices.
        event: &'static str,
        /// The reason of these notices; may be empty.
        reason: Box<str>,
        /// How many.
        notices: u64,
    },
}

impl Notice {
    /// The name that stands in the log, whatever the text; people search and alert by it.
    pub fn event(&self) -> &'static str {
        match self {
            Self::PayloadNotServed { .. } => "payload_not_served",
            Self::Quarantined { .. } => "service_quarantined",
            Self::EndpointsLeftOut { .. } => "endpoints_left_out",
            Self::HostChanged { .. } => "host_changed",
            Self::VipChanged { .. } => "vip_changed",
            Self::PlaceContested { .. } => "place_contested",
            Self::AddressContested { .. } => "address_contested",
            Self::AddressNotOwn { .. } => "address_not_own",
            Self::MtlsMixed { .. } => "mtls_mixed",
            Self::FirstViewHeld(_) => "first_view_held",
            Self::NoBaseline => "no_baseline",
            Self::MassDeleteHeld(_) => "mass_delete_held",
            Self::MassDeleteNotHeld(_) => "mass_delete_not_held",
            Self::MassDeleteOver { .. } => "mass_delete_over",
            Self::MassAddHeld { .. } => "mass_add_held",
            Self::MassAddOver { .. } => "mass_add_over",
            Self::NarrowingHeld(_) => "narrowing_held",
            Self::NarrowingOver { .. } => "narrowing_over",
            Self::ServicesUnknown { .. } => "service_unknown",
            Self::ServicesKnown => "service_known",
            Self::ViewComplete { .. } => "view_complete",
            Self::NothingToFreeze => "nothing_to_freeze",
            Self::LastGoodServed => "last_good_served",
            Self::LastGoodTooOld { .. } => "last_good_too_old",
            Self::LeftOut { .. } => "notices_left_out",
        }
    }

    /// The reason and the subject of a notice that a publisher can cause.
    fn cause(&self) -> Option<(String, Box<str>)> {
        Some(match self {
            Self::PayloadNotServed { reason, id, .. } => (reason.to_string(), (**id).into()),
            Self::Quarantined { why, id, .. } => (why.reason.to_owned(), (**id).into()),
            Self::EndpointsLeftOut { invalid, id, .. } => (invalid.rule.to_string(), (**id).into()),
            Self::HostChanged { id, .. } => (String::new(), (**id).into()),
            Self::VipChanged { id, .. } => (String::new(), (**id).into()),
            Self::PlaceContested { name, .. } => (String::new(), (**name).into()),
            Self::AddressContested { address, port, .. } => (String::new(), format!("{address} {port}").into()),
            Self::AddressNotOwn { address, port, .. } => (String::new(), format!("{address} {port}").into()),
            Self::MtlsMixed { application, port } => (String::new(), format!("{application} {port}").into()),
            Self::MassDeleteHeld(_)
            | Self::MassDeleteNotHeld(_)
            | Self::MassDeleteOver { .. }
            | Self::MassAddHeld { .. }
            | Self::MassAddOver { .. }
            | Self::NarrowingHeld(_)
            | Self::NarrowingOver { .. }
            | Self::NothingToFreeze => (String::new(), "".into()),
            _ => return None,
        })
    }
}

/// The notices of a round, at most one of a reason and subject a minute.
#[derive(Debug, Default)]
pub struct Notices {
    round: Vec<Notice>,
    /// By event and reason.
    given: HashMap<(&'static str, String), Recent>,
}

/// The notices of an event and reason since a moment.
#[derive(Debug, Default)]
struct Recent {
    since: Millis,
    subjects: BTreeSet<Box<str>>,
    left_out: u64,
}

impl Notices {
    /// Gives a notice, or counts it if it was given lately.
    pub fn give(&mut self, now: Millis, notice: Notice) {
        let Some((reason, subject)) = notice.cause() else { return self.round.push(notice) };
        let event = notice.event();
        let given = self.given.entry((event, reason.clone())).or_default();
        if given.subjects.is_empty() || now - given.since >= SPAN {
            if given.left_out > 0 {
                self.round.push(Notice::LeftOut { event, reason: reason.into(), notices: given.left_out });
            }
            *given = Recent { since: now, ..Recent::default() };
        }
        if given.subjects.len() < SUBJECTS && given.subjects.insert(subject) {
            self.round.push(notice);
        } else {
            given.left_out += 1;
        }
    }

    /// The notices that were given since the last call.
    pub fn take(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.round)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(n: usize) -> Notice {
        Notice::HostChanged { id: format!("s{n}").into(), was: "a".into(), is: "b".into() }
    }

    #[test]
    fn one_reason_and_subject_is_given_once_a_minute() {
        let mut notices = Notices::default();
        notices.give(0, moved(1));
        notices.give(1, moved(1));
        notices.give(59_999, moved(2));
        assert_eq!(notices.take(), [moved(1), moved(2)]);
        notices.give(60_000, moved(1));
        let left_out = Notice::LeftOut { event: "host_changed", reason: "".into(), notices: 1 };
        assert_eq!(notices.take(), [left_out, moved(1)]);
        assert!(notices.take().is_empty());
    }

    #[test]
    fn a_flood_is_counted() {
        let mut notices = Notices::default();
        (0..10_000).for_each(|n| notices.give(n as Millis, moved(n)));
        assert_eq!(notices.take().len(), SUBJECTS);
        notices.give(70_000, moved(0));
        let left_out = 10_000 - SUBJECTS as u64;
        assert_eq!(notices.take()[0], Notice::LeftOut { event: "host_changed", reason: "".into(), notices: left_out });
        assert_eq!(notices.given.len(), 1);
    }

    #[test]
    fn what_nobody_outside_causes_is_always_given() {
        let mut notices = Notices::default();
        (0..3).for_each(|_| notices.give(0, Notice::LastGoodServed));
        assert_eq!(notices.take().len(), 3);
    }
}
