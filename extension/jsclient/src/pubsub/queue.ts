// What waits to be taken by the loop of a subscription. A page cannot hold back what its server sends, so this has a bound.

import type { ArpcError } from '../index.js';
import type { Member, Message, Position, Raw } from './wire.js';

/**
 * What happens to a message when as many wait as may, at the server while the connection is full and here while the loop is busy:
 *
 * - 'drop_oldest', the default: what has waited longest is dropped
 * - 'drop_newest': the new message is dropped
 * - 'conflate': at any length, what waits with the same topic and key is dropped, and not counted as lost; at the bound the oldest
 * - 'disconnect': the server closes the connection; here, the server is told to stop. When the loop has taken what waits, the
 *   subscription goes on from there, and recovers what the topic has kept
 */
export type Policy = 'drop_oldest' | 'drop_newest' | 'conflate' | 'disconnect';

/** A subscription has begun, or has begun again. */
export interface Subscribed {
  kind: 'subscribed';
  /** It has begun at a place that was known: that of from, or where it was when its connection was lost. */
  resumed: boolean;
  /**
   * Nothing is missing between that place and what follows. With resumed and without recovered there may be a gap: what the
   * messages stand for must be read anew. It is never true where something is missing.
   */
  recovered: boolean;
  /** The place before the first message that follows; undefined without history. */
  position: Position | undefined;
}

/**
 * What happens to a subscription beside messages.
 *
 * - 'subscribed': see Subscribed
 * - 'lost': the policy has dropped so many messages, or joins and leaves
 * - 'joined', 'left': somebody has come, or has gone
 * - 'interrupted': the server has lost its engine; 'subscribed' follows when it is back
 * - 'malformed': a message could not be decoded, and is not in the loop
 */
export type SubscriptionEvent =
  | Subscribed
  | { kind: 'lost'; count: number }
  | { kind: 'joined'; member: Member }
  | { kind: 'left'; member: Member }
  | { kind: 'interrupted'; error: ArpcError }
  | { kind: 'malformed'; error: ArpcError; message: Message<undefined> };

/** Events that no policy drops. Of each kind one waits at a place, which says what all of them would. */
type Note = Extract<SubscriptionEvent, { kind: 'subscribed' | 'lost' | 'interrupted' }>;

/** A message, or somebody who has come or gone; and what is taken out. */
type What = Raw | SubscriptionEvent;

interface Item {
  what: What;
  size: number;
  key: string;
  /** What comes before it. */
  notes: Note[];
}

function add(notes: Note[], note: Note): void {
  const i = notes.findIndex((n) => n.kind === note.kind), before = i < 0 ? undefined : notes.splice(i, 1)[0]!;
  if (note.kind === 'lost' && before?.kind === 'lost') note = { ...note, count: before.count + note.count };
  // Who has not seen the first beginning misses nothing of what was before it.
  if (note.kind === 'subscribed' && before?.kind === 'subscribed') note = { ...note, recovered: note.recovered && (before.recovered || !before.resumed) };
  notes.push(note);
}

export class Queue {
  dropped = 0;
  conflated = 0;
  private items = new Set<Item>();
  private byKey = new Map<string, Item>();
  private notes: Note[] = []; // after the last item
  private total = 0;

  constructor(private readonly policy: Policy, private readonly most: number, private readonly mostBytes: number) {}

  get size(): number {
    return this.items.size;
  }

  /** Appends an event that no policy drops. */
  note(note: Note): void {
    add(this.notes, note);
  }

  /** Appends something as the policy says. False: there is no room, and the policy is to stop. */
  push(what: What, size: number, key: string): boolean {
    const old = this.byKey.get(key);
    if (old) {
      this.conflated++;
      this.drop(old); // the new one goes to the end, as positions must be in order
    }
    while (this.size && (this.size >= this.most || this.total + size > this.mostBytes)) {
      if (this.policy === 'disconnect') return false;
      this.dropped++;
      if (this.policy === 'drop_newest') {
        this.note({ kind: 'lost', count: 1 });
        return true;
      }
      this.drop(this.first!, { kind: 'lost', count: 1 });
    }
    const item = { what, size, key, notes: this.notes };
    this.notes = [];
    this.total += size;
    this.items.add(item);
    if (key && this.policy === 'conflate') this.byKey.set(key, item);
    return true;
  }

  /** Takes out the next, undefined if there is none. */
  take(): What | undefined {
    const { first } = this, note = (first?.notes ?? this.notes).shift();
    if (first && !note) this.remove(first);
    return note ?? first?.what;
  }

  clear(): void {
    this.items.clear();
    this.byKey.clear();
    this.notes = [];
    this.total = 0;
  }

  private get first(): Item | undefined {
    return this.items.values().next().value;
  }

  /** Takes out an item, whose notes come before the next one then, with those about its loss. */
  private drop(item: Item, ...lost: Note[]): void {
    const notes = [...item.notes, ...lost];
    if (notes.length) { // else the next one need not be looked for
      let next = this.notes, found = false;
      for (const other of this.items) {
        if (found) {
          next = other.notes;
          break;
        }
        found = other === item;
      }
      notes.push(...next.splice(0));
      for (const n of notes) add(next, n);
    }
    this.remove(item);
  }

  private remove(item: Item): void {
    this.items.delete(item);
    this.total -= item.size;
    if (this.byKey.get(item.key) === item) this.byKey.delete(item.key);
  }
}
