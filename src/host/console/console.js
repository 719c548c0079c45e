'use strict';
// Reading needs no script. This sends what changes something, with the token, and keeps the overview fresh.
const token = () => document.querySelector('#token')?.value ?? '';
const told = (text) => { const out = document.querySelector('#answer'); if (out) { out.textContent = text; out.focus(); } };

async function send(path, body, headers = {}) {
  told('…');
  try {
    const answer = await fetch(path, { method: 'POST', body, headers: { 'X-Mox-Token': token(), ...headers } });
    told(`${answer.status}\n${await answer.text()}`);
  } catch (error) {
    told(`no answer: ${error}`);
  }
}

document.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-post]');
  if (!button) return;
  event.preventDefault();
  const { post, body, match } = button.dataset;
  send(post, body ? document.querySelector(body).value : undefined, match ? { 'If-Match': match } : {});
});

// The overview, every five seconds, while somebody looks at it and types nothing.
const live = document.querySelector('[data-live]');
if (live) {
  setInterval(async () => {
    if (document.hidden || live.contains(document.activeElement)) return;
    try {
      const answer = await fetch(location.href, { headers: { Accept: 'application/xhtml+xml' } });
      if (!answer.ok) return;
      const fresh = new DOMParser().parseFromString(await answer.text(), 'text/html').querySelector('[data-live]');
      if (fresh) live.replaceChildren(...fresh.childNodes);
    } catch { /* the next one may come */ }
  }, 5000);
}
