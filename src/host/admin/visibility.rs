//! Pages on who sees what: of one service, and of all.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::{Value, json};

use crate::{
    host::{engine::Engine, page::Page, visibility::Consumed},
    policy::{Consumers, Mode},
};

/// A page shows this many of a kind.
const SHOWN: usize = 100;

/// To whoever switches it on.
const BY_HOST: &str = "callers by host never subscribe, and are not seen: services that they call need exportTo in an override of the policy, \
                       or their namespaces in visibility.always";

/// Who consumes the service of a dataInfoId, and who sees it: fields of its page.
pub(super) fn of(engine: &Engine, id: &str) -> Value {
    let Consumed { mode, known, policy, consumers, visible, clients, computing, holder } = engine.consumed(id);
    let mut page = json!({
        "visibility": {
            "mode": mode,
            "known": known,
            "exportTo": if mode == Mode::On { &visible } else { &policy },
            "policyExportTo": policy,
            "visibleTo": visible,
            "namespaces": consumers.as_ref().map(|it| &it.namespaces),
            "unknown": consumers.as_ref().is_some_and(|it: &Consumers| it.unknown),
        },
    });
    if mode == Mode::Off {
        page["visibility"]["why"] = "the policy's visibility is off, so nobody asks who subscribes".into();
    } else if computing {
        page["consumersLeftOut"] = clients.len().saturating_sub(SHOWN).into();
        page["consumers"] = json!(clients.into_iter().take(SHOWN).collect::<Vec<_>>());
    } else {
        // Every server has what follows from it; one has the clients.
        page["consumersAt"] = json!(holder);
    }
    page
}

/// All that is known of who sees what, with lists of what an operator has to decide.
pub(super) fn all(engine: &Engine) -> Page {
    let mut page = match serde_json::to_value(engine.visibility_status()) {
        Ok(page) => page,
        Err(error) => return Page::text(500, format!("{error}\n")),
    };
    let lists = engine.visibility_lists();
    let first = |all: &BTreeSet<Arc<str>>| -> Value {
        json!({ "count": all.len(), "first": all.iter().take(SHOWN).collect::<Vec<_>>() })
    };
    page["warning"] = BY_HOST.into();
    if let Some(lists) = lists {
        page["narrowed"] = first(&lists.narrowed);
        page["unused"] = first(&lists.unused);
        page["unknown"] = first(&lists.unknown);
        if let Some(clients) = lists.clients_nowhere {
            page["consumersOfUnknownNamespace"] = json!({
                "count": clients.len(),
                "first": clients.iter().take(SHOWN).collect::<Vec<_>>(),
            });
        }
    }
    Page::json(&page)
}
