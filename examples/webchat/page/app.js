import { Client } from './arpc.mjs';

const $ = (id) => document.getElementById(id);
let client, you = '';
let room, here; // the one that is wanted, and the one that was joined
let shown = 0; // the number of the last message that is shown
let early; // what was pushed while the answer of a join is on its way
let unread = 0;

// Another tab may have another name.
$('name').value = sessionStorage.name ?? localStorage.name ?? '';
if (location.hash.length > 1) $('room').value = roomOfHash();
if (sessionStorage.name) start();
else $('name').focus();

$('enter').onsubmit = (e) => {
  e.preventDefault();
  sessionStorage.name = localStorage.name = $('name').value;
  room = $('room').value;
  location.hash = encodeURIComponent(room);
  start();
};

/** Connects. The client connects again by itself, and each connection joins the room by onConnect. */
function start() {
  room = roomOfHash() || room || 'lobby';
  $('entry').hidden = true;
  $('chat').hidden = false;
  client = new Client('/arpc', { onConnect: join, reconnect: { min: 200, max: 3000 } });
  client.handle('/whoami', () => ({ name: sessionStorage.name }));
  push('/message', add);
  push('/members', (members) => members.room === room && showMembers(members.names));
  push('/rooms', showRooms);
  client.on('state', showState);
  showState();
  $('text').focus();
}

/** Takes what the server pushes, while a join goes on after its answer. */
function push(route, f) {
  client.handle(route, (value) => {
    if (early) early.push(() => f(value));
    else f(value);
  });
}

async function join() {
  const wanted = room;
  early = [];
  try {
    const joined = await client.call('/join', { room: wanted });
    if (wanted !== room) return join(); // the user has changed to another one meanwhile
    here = room = joined.room;
    you = joined.you;
    shown = 0;
    $('title').textContent = '# ' + room;
    $('messages').replaceChildren();
    $('empty').hidden = false;
    showRooms(joined.rooms);
    showMembers(joined.members);
    problem();
    joined.history.forEach(add);
    for (const f of early) f();
    $('log').scrollTop = $('log').scrollHeight;
    title();
  } catch (e) {
    problem(e);
    if (here) history.replaceState(null, '', '#' + encodeURIComponent((room = here)));
  }
  early = undefined;
}

$('say').onsubmit = async (e) => {
  e.preventDefault();
  const text = $('text').value;
  if (!text.trim()) return;
  $('text').value = '';
  try {
    await client.call('/say', { text }, { timeout: 10000 });
    problem();
  } catch (e) {
    $('text').value ||= text; // to be tried again
    problem(e);
  }
};
$('text').onkeydown = (e) => {
  if (e.key !== 'Enter' || e.shiftKey || e.isComposing) return;
  e.preventDefault();
  $('say').requestSubmit();
};

$('other').onsubmit = (e) => {
  e.preventDefault();
  location.hash = encodeURIComponent($('newroom').value.trim());
  $('newroom').value = '';
};
onhashchange = () => {
  if (!client || !roomOfHash() || roomOfHash() === room) return;
  room = roomOfHash();
  if (client.state === 'open' && !early) join(); // else it is joined by the next connection, or after the join that goes on
  $('text').focus();
};
$('leave').onclick = () => {
  sessionStorage.removeItem('name');
  client.close();
  location.reload();
};
document.onvisibilitychange = () => {
  if (!document.hidden) unread = 0;
  title();
};

function roomOfHash() {
  try {
    return decodeURIComponent(location.hash.slice(1)).trim().slice(0, 32);
  } catch {
    return '';
  }
}

function add(m) {
  if (m.room !== room || m.id <= shown) return; // in the history already
  shown = m.id;
  const log = $('log'), atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  const last = $('messages').lastElementChild;
  const first = !last || last.dataset.from !== m.from || m.at - last.dataset.at > 5 * 60000;
  const li = element('li', { className: (m.from === you ? 'mine ' : '') + (first ? 'first' : '') });
  li.dataset.from = m.from;
  li.dataset.at = m.at;
  if (first) {
    const time = element('time', { dateTime: new Date(m.at).toISOString() }, new Date(m.at).toLocaleTimeString([], { timeStyle: 'short' }));
    const by = element('div', { className: 'by' });
    by.append(element('b', {}, m.from), time);
    li.append(face(m.from), by);
  }
  li.append(element('div', { className: 'text', dir: 'auto' }, m.text));
  $('messages').append(li);
  while ($('messages').children.length > 500) $('messages').firstElementChild.remove();
  $('empty').hidden = true;
  if (atEnd || m.from === you) log.scrollTop = log.scrollHeight;
  if (document.hidden && !early) unread++;
  title();
}

function showMembers(names) {
  $('members').replaceChildren(...names.map((name) => {
    const li = element('li', { title: name });
    li.append(face(name), element('span', {}, name === you ? name + ' (you)' : name));
    return li;
  }));
}

function showRooms(names) {
  const focused = document.activeElement?.dataset.room;
  $('rooms').replaceChildren(...names.map((name) => {
    const li = element('li'), button = element('button', { type: 'button' }, name);
    button.dataset.room = name;
    if (name === room) button.setAttribute('aria-current', 'true');
    button.onclick = () => (location.hash = encodeURIComponent(name));
    li.append(button);
    return li;
  }));
  for (const b of $('rooms').querySelectorAll('button')) {
    if (b.dataset.room === room) b.scrollIntoView({ block: 'nearest', inline: 'nearest' });
    if (b.dataset.room === focused) b.focus();
  }
}

function showState() {
  $('state').className = client.state;
  $('state').textContent = { connecting: 'Connecting…', open: 'Online', reconnecting: 'Reconnecting…', closed: 'Closed' }[client.state];
}

function problem(e) {
  $('problem').textContent = e ? e.message.replace(/^./, (c) => c.toUpperCase()) + '.' : '';
}

function title() {
  document.title = (unread ? `(${unread}) ` : '') + room + ' – webchat';
}

function face(name) {
  let hash = 0x811c9dc5;
  for (const c of name) hash = Math.imul(hash ^ c.codePointAt(0), 0x01000193) >>> 0;
  const e = element('span', { className: 'face', ariaHidden: 'true' }, [...name][0].toUpperCase());
  e.style.setProperty('--hue', hash % 360); // a style attribute would need more of the content security policy
  return e;
}

/** Text only, so that what others send is never markup. */
function element(tag, properties = {}, text = '') {
  return Object.assign(document.createElement(tag), properties, { textContent: text });
}
