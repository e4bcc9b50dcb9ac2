import { Client, Code } from './arpc.mjs';
import { PubSub } from './pubsub.mjs';

const topic = 'board', maxShown = 1000;
const $ = (id) => document.getElementById(id);

// What the button does: the connection is closed, and none can be made until it is let go.
let cut = false, socket;
class Cuttable extends WebSocket {
  constructor(...args) {
    if (cut) throw new Error('the connection is cut');
    super(...args);
    socket = this;
  }
}

const client = new Client('/arpc', { WebSocket: Cuttable, reconnect: { min: 200, max: 1000 } });
const pubsub = new PubSub(client);

// Another tab is another guest.
$('name').value = sessionStorage.name ||= 'Guest ' + (1 + Math.floor(Math.random() * 999));

const members = new Map(); // by ID
let until, missed = 0; // after a reconnect: what had been put up before it ends there, and how much of that has come

let watching;

/** Puts up what is on the board, and what comes. The loop lasts as long as the page; connections come and go beneath it. */
async function watch() {
  const sub = pubsub.subscribe(topic, {
    last: maxShown, presence: true, join: { name: $('name').value }, onEvent,
    policy: 'disconnect', // the history has what this page is too slow for
  });
  watching?.unsubscribe();
  watching = sub;
  try {
    for await (const m of sub) {
      add(m);
      showCounts();
    }
  } catch (e) {
    problem(e);
  }
}

/** What happens beside notes, in its place between them. */
async function onEvent(e) {
  if (e.kind === 'joined') members.set(e.member.id, e.member);
  else if (e.kind === 'left') members.delete(e.member.id);
  else if (e.kind === 'interrupted') problem(e.error);
  else if (e.kind === 'subscribed') await begun(e);
  showMembers();
}

/** A connection has begun: what the board had while there was none follows. */
async function begun(e) {
  missed = 0;
  until = undefined;
  if (!e.recovered) {
    // There may be a gap. So the board is read anew: all that the history has follows.
    $('notes').replaceChildren();
    $('empty').hidden = false;
  }
  try {
    const [here, { top }] = await Promise.all([pubsub.members(topic, { timeout: 5000 }), pubsub.history(topic, { limit: -1, timeout: 5000 })]);
    members.clear();
    for (const m of here) members.set(m.id, m);
    until = e.resumed ? top : undefined;
    problem();
  } catch (err) {
    problem(err); // the next connection tries again
  }
  if (e.resumed) showRecovery(e.recovered);
  showCounts();
}

function showRecovery(recovered) {
  const p = $('recovery');
  p.dataset.recovered = recovered ? 'yes' : 'no';
  p.dataset.notes = missed;
  const notes = missed === 1 ? '1 note' : `${missed} notes`;
  p.textContent = recovered
    ? `Everything was recovered: ${notes} had been put up meanwhile, and nothing is missing.`
    : `Not recovered: the server does not know what this page has missed. The board was read anew, with ${notes}.`;
}

function add({ value, position, timestamp }) {
  const text = String(value?.text ?? '').slice(0, 500), by = String(value?.by ?? '').slice(0, 32);
  const log = $('log'), atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  const li = element('li');
  if (until && position?.epoch === until.epoch && position.offset <= until.offset) {
    li.className = 'missed';
    missed++;
    showRecovery($('recovery').dataset.recovered === 'yes');
  }
  const time = new Date(timestamp);
  const head = element('div', { className: 'by' });
  head.append(element('b', {}, by), ' ', element('time', { dateTime: time.toISOString() }, time.toLocaleTimeString()));
  li.append(element('div', { className: 'text', dir: 'auto' }, text), head);
  $('notes').append(li);
  while ($('notes').children.length > maxShown) $('notes').firstElementChild.remove();
  $('empty').hidden = true;
  if (atEnd) log.scrollTop = log.scrollHeight;
}

// Notes are sent one after the other. One whose outcome is not known is sent again under the same ID, and counts once.
const self = Array.from(crypto.getRandomValues(new Uint8Array(8)), (b) => b.toString(16).padStart(2, '0')).join('');
let sent = 0, sending = Promise.resolve();

$('say').onsubmit = (e) => {
  e.preventDefault();
  const text = $('text').value.trim(), by = $('name').value.trim();
  if (!text || !by) return;
  $('text').value = '';
  const li = element('li', {}, text), id = `${self}-${++sent}`;
  $('outbox').append(li);
  li.scrollIntoView({ block: 'nearest' });
  sending = sending.then(() => send({ text, by }, id)).then(() => problem(), (err) => {
    problem(err);
    $('text').value ||= text; // to be changed, and tried again
  }).finally(() => li.remove());
};

async function send(note, id) {
  for (let wait = 200; ; wait = Math.min(2 * wait, 5000)) {
    await open();
    try {
      return await pubsub.publish(topic, note, { id, timeout: 5000 });
    } catch (e) {
      if (e.remote && e.code !== Code.Unavailable) throw e; // it would not change its mind
      problem(e);
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

/** Waits for a connection. */
function open() {
  if (client.state === 'open') return;
  return new Promise((resolve) => {
    const off = client.on('open', () => {
      off();
      resolve();
    });
  });
}

$('name').onchange = () => {
  $('name').value = sessionStorage.name = $('name').value.trim() || sessionStorage.name;
  $('recovery').dataset.recovered = 'none';
  $('recovery').textContent = 'None yet under this name.';
  watch(); // another member, and the board from the beginning
};

$('cut').onclick = () => {
  cut = !cut;
  $('cut').setAttribute('aria-pressed', cut);
  $('cut').textContent = cut ? 'Let it connect again' : 'Cut the connection';
  if (cut) socket?.close();
};

let connections = 0;
client.on('state', (state) => {
  if (state === 'open') connections++;
  showState();
  showCounts();
});

function showState() {
  $('state').className = client.state;
  $('state').textContent = { connecting: 'Connecting…', open: 'Online', reconnecting: cut ? 'Cut' : 'Reconnecting…', closed: 'Closed' }[client.state];
}

function showCounts() {
  const { position, stats } = watching;
  $('position').textContent = position ? `${position.offset}, epoch ${position.epoch}` : '–';
  $('received').textContent = stats.received;
  $('connections').textContent = connections;
}

function showMembers() {
  const mine = watching.member;
  const all = [...members.values()].map(({ id, info }) => String(info?.name ?? '?').slice(0, 32) + (id === mine ? ' (you)' : ''));
  $('members').replaceChildren(...all.sort((a, b) => a.localeCompare(b)).map((name) => element('li', {}, name)));
}

function problem(e) {
  $('problem').textContent = e ? e.message.replace(/^./, (c) => c.toUpperCase()) + '.' : '';
}

/** Text only, so that what others send is never markup. */
function element(tag, properties = {}, text = '') {
  return Object.assign(document.createElement(tag), properties, { textContent: text });
}

watch();
