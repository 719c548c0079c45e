'use strict';
// Reading needs no script. This sends what changes something, with the token, and keeps the pages fresh.
const one = (selector) => document.querySelector(selector);
const told = (text) => { const out = one('#answer'); out.textContent = text; out.focus(); };

async function send({ post, body, match }) {
  const token = one('#token').value;
  if (/[^ -~]/.test(token)) return told('The token has a character that no header can carry, so it is not this one.');
  told('…');
  try {
    const headers = { 'X-Mox-Token': token, ...(match && { 'If-Match': one(match).dataset.revision }) };
    const answer = await fetch(post, { method: 'POST', body: body && one(body).value, headers });
    told(`${answer.status}\n${await answer.text()}`);
    if (answer.ok && !post.includes('dryRun')) await refresh('[data-live], [data-revision]').catch(() => { /* what was answered counts */ });
  } catch (error) {
    told(`no answer: ${error}`);
  }
}

document.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-post]');
  if (button) send(button.dataset);
});

// Takes parts of the page from the server anew, but for the one that somebody is in.
async function refresh(parts) {
  const answer = await fetch(location.href, { headers: { Accept: 'application/xhtml+xml' } });
  if (!answer.ok) throw new Error(answer.status);
  const fresh = new DOMParser().parseFromString(await answer.text(), 'text/html').querySelectorAll(parts);
  document.querySelectorAll(parts).forEach((part, n) => {
    if (fresh[n] && !fresh[n].isEqualNode(part) && !part.contains(document.activeElement)) part.replaceWith(fresh[n]);
  });
}

// What others change shows within five seconds, while somebody looks; a document that is being written stays.
if (one('[data-live]')) {
  let seen = new Date();
  setInterval(() => {
    if (document.hidden) return;
    refresh('[data-live]').then(
      () => { seen = new Date(); one('#stale').textContent = ''; },
      // The next one may come; until then nobody is to take what was for what is.
      () => { one('#stale').textContent = `No answer from the session server: this is as it was at ${seen.toLocaleTimeString()}.`; });
  }, 5000);
}
