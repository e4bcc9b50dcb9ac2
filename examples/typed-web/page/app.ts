// The page: it calls the House of the server, and is itself a Resident that the server calls. Names, requests and answers of both
// come from thermostat.proto.

import { ArpcError, Client, Code } from '@arpc-go/arpc';
import type { MessageShape } from '@bufbuild/protobuf';
import { handleResident, HouseClient } from '../thermostat/thermostat_arpc';
import type { RoomSchema } from '../thermostat/thermostat_pb';

type Room = MessageShape<typeof RoomSchema>;

const $ = <E extends HTMLElement = HTMLElement>(id: string) => document.getElementById(id) as E;

/** Text only, so that what others send is never markup. */
function element<K extends keyof HTMLElementTagNameMap>(tag: K, properties: Partial<HTMLElementTagNameMap[K]> = {}, ...children: (string | Node)[]): HTMLElementTagNameMap[K] {
  const e = document.createElement(tag);
  Object.assign(e, properties);
  e.append(...children);
  return e;
}

const degrees = (n: number) => `${n.toFixed(1)} °C`;

// The connection comes back by itself; each one begins to watch.
const client = new Client('/arpc', { reconnect: { min: 200, max: 3000 } });
const house = new HouseClient(client);
client.on('open', () => void watch());
client.on('state', showState);
showState();

function showState() {
  $('state').className = client.state;
  $('state').textContent = { connecting: 'Connecting…', open: 'Online', reconnecting: 'Reconnecting…', closed: 'Closed' }[client.state];
}

// A server stream.

let received = 0;

async function watch() {
  try {
    for await (const room of await house.watch({})) {
      $('received').textContent = `${++received} ${received === 1 ? 'message' : 'messages'}, last ${room.name} ${degrees(room.temperature)}`;
      show(room);
    }
  } catch (e) {
    if (!(e instanceof ArpcError && e.code === Code.Unavailable)) problem(e); // the state says it, and the next connection watches again
  }
}

// Calls of the server.

async function setTarget(card: Card, target: number) {
  const entry = log('call', 'House.SetTarget', `${card.room.name}, ${degrees(target)}`);
  card.pending++;
  try {
    const room = await house.setTarget({ room: card.room.name, target }, { timeout: 90_000 });
    entry(`${room.name}: ${degrees(room.temperature)}, ${room.heating ? 'heating' : 'not heating'}`);
    problem();
    card.room = room;
  } catch (e) {
    entry(e instanceof ArpcError ? `${Code[e.code] ?? e.code}: ${e.message}` : String(e), true);
    if (!(e instanceof ArpcError && e.code === Code.Aborted)) problem(e);
  }
  card.pending--;
  update(card);
}

// Calls by the server.

handleResident(client, {
  async confirm({ text }, { signal }) {
    const entry = log('question', 'Resident.Confirm', text);
    const yes = await ask(text, signal);
    // An answer to nobody is dropped.
    entry(signal.aborted ? 'the question was taken back' : yes ? 'yes' : 'no', signal.aborted);
    return { yes };
  },
});

/** Questions are asked one after the other. */
let asking: Promise<unknown> = Promise.resolve();

function ask(text: string, signal: AbortSignal): Promise<boolean> {
  const answer = asking.then(() => {
    if (signal.aborted) return false;
    const dialog = $<HTMLDialogElement>('question');
    $('question-text').textContent = text;
    dialog.returnValue = '';
    dialog.showModal();
    return new Promise<boolean>((resolve) => {
      const close = () => dialog.close();
      signal.addEventListener('abort', close);
      dialog.onclose = () => {
        signal.removeEventListener('abort', close);
        resolve(dialog.returnValue === 'yes');
      };
    });
  });
  asking = answer;
  return answer;
}

// The rooms.

interface Card {
  room: Room;
  /** Calls without an answer yet. */
  pending: number;
  history: number[];
  item: HTMLLIElement;
  temperature: HTMLElement;
  heating: HTMLElement;
  target: HTMLOutputElement;
  slider: HTMLInputElement;
  line: SVGPolylineElement;
}

const cards = new Map<string, Card>();

function show(room: Room) {
  let card = cards.get(room.name);
  if (!card) cards.set(room.name, (card = newCard(room)));
  card.room = room;
  if (card.history.push(room.temperature) > 60) card.history.shift();
  update(card);
}

function newCard(room: Room): Card {
  const id = `room-${cards.size}`;
  const svg = (tag: string, attributes: Record<string, string>) => {
    const e = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
    return e;
  };
  const line = svg('polyline', { fill: 'none', 'vector-effect': 'non-scaling-stroke' }) as SVGPolylineElement;
  const chart = svg('svg', { viewBox: '0 0 100 30', preserveAspectRatio: 'none', 'aria-hidden': 'true' });
  chart.append(line);
  const temperature = element('b', { className: 'temperature' }), heating = element('span', { className: 'heating' });
  const target = element('output');
  target.htmlFor.add(id);
  const slider = element('input', { type: 'range', id, min: '5', max: '30', step: '0.5' });
  const button = (text: string, what: string, by: number) => element('button', {
    type: 'button', ariaLabel: `${room.name} ${what}`,
    onclick: () => {
      slider.value = String(slider.valueAsNumber + by);
      slider.oninput?.(new Event('input'));
      void setTarget(card, slider.valueAsNumber);
    },
  }, text);
  const item = element('li', {},
    element('h2', {}, room.name), heating, temperature, chart,
    element('label', { htmlFor: id, className: 'target' }, 'Target ', target),
    element('div', { className: 'set' }, button('−', 'cooler', -0.5), slider, button('+', 'warmer', 0.5)));
  const card: Card = { room, pending: 0, history: [], item, temperature, heating, target, slider, line };
  slider.ariaLabel = `${room.name} target`;
  slider.oninput = () => showTarget(card, slider.valueAsNumber);
  slider.onchange = () => void setTarget(card, slider.valueAsNumber);
  $('rooms').append(item);
  return card;
}

function showTarget(card: Card, n: number) {
  card.target.textContent = card.slider.ariaValueText = degrees(n);
}

function update(card: Card) {
  const { room, history } = card;
  card.temperature.textContent = degrees(room.temperature);
  card.heating.textContent = room.heating ? 'Heating' : 'Off';
  card.item.classList.toggle('hot', room.heating);
  card.item.ariaBusy = String(card.pending > 0);
  // Not under the hands of who moves it, nor while an answer is on its way.
  if (!card.pending && !card.slider.matches(':active')) {
    card.slider.value = String(room.target);
    showTarget(card, room.target);
  }
  const low = Math.min(...history), span = Math.max(Math.max(...history) - low, 0.5);
  const step = 100 / Math.max(history.length - 1, 1);
  card.line.setAttribute('points', history.map((t, i) => `${i * step},${27 - ((t - low) / span) * 24}`).join(' '));
}

// What is said.

/** Adds a line; what it returns adds the answer to it. */
function log(kind: 'call' | 'question', method: string, value: string): (answer: string, failed?: boolean) => void {
  const answer = element('span', { className: 'answer' }, '…');
  const from = kind === 'call' ? 'page → server' : 'server → page';
  const item = element('li', { className: kind },
    element('div', {}, element('span', { className: 'kind' }, from), element('code', {}, method)),
    element('span', {}, value), answer);
  $('entries').prepend(item);
  while ($('entries').children.length > 100) $('entries').lastElementChild!.remove();
  $('empty').hidden = true;
  return (text, failed = false) => {
    answer.textContent = text;
    answer.classList.toggle('failed', failed);
  };
}

function problem(e?: unknown) {
  $('problem').textContent = e === undefined ? '' : (e instanceof Error ? e.message : String(e)).replace(/^./, (c) => c.toUpperCase()) + '.';
}
