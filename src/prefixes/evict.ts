// Which prefixes a storage forgets, and what was left behind by writers that never came to their end.

import { type Items, keysOf, type Manifest, manifestName, pagesName, sizeOf, together, usedName } from './items.ts';

/** Of the budget, what is left: all manifests are read for it, which should not be at every put. */
const KEPT = 0.9;
/** Pages come before their manifest. If none names them after this time, it never came. */
const GRACE_MS = 10 * 60 * 1000;
/** What no manifest named, and since when that is known. */
const ORPHANS = 'orphans';

/** Makes a storage smaller than `budget`, if it is larger, by the prefixes that were not used for the longest time. */
export async function evict(items: Items, budget: number): Promise<{ readonly bytes: number; readonly gone: ReadonlySet<string> }> {
  const names = await items.names();
  let bytes = sizeOf(names);
  const gone = new Set<string>();
  if (bytes <= budget) return { bytes, gone };
  const [manifests, used] = await Promise.all([
    readAll(keysOf(names, 'manifests'), key => items.readManifest(key)),
    readAll(keysOf(names, 'used'), key => items.readUsed(key))
  ]);
  const holders = new Map<string, number>();
  const named = ({ pages, bytes }: Manifest): string => pagesName(pages, bytes);
  for (const manifest of manifests.values()) holders.set(named(manifest), (holders.get(named(manifest)) ?? 0) + 1);
  const dropped: string[] = [];
  const drop = (name: string): void => {
    bytes -= sizeOf([name]);
    dropped.push(name);
  };

  // What is damaged is no one's.
  for (const key of keysOf(names, 'manifests')) if (!manifests.has(key)) drop(manifestName(key));
  for (const name of await orphans(items, names, manifests, holders)) drop(name);
  for (const key of leastRecentlyUsed(manifests, used)) {
    if (bytes <= KEPT * budget) break;
    const name = named(manifests.get(key)!);
    gone.add(key);
    drop(manifestName(key));
    if (used.has(key)) drop(usedName(key));
    const left = holders.get(name)! - 1;
    holders.set(name, left);
    if (left === 0) drop(name);
  }
  await items.removeAll(dropped);
  return { bytes, gone };
}

/** Keys in the order to forget them. A prefix was used when what continues it was, and goes after it. */
export function leastRecentlyUsed(manifests: ReadonlyMap<string, Manifest>, used: ReadonlyMap<string, number>): string[] {
  const depths = new Map<string, number>();
  for (const key of manifests.keys()) {
    const path: string[] = [];
    for (let at = key; manifests.has(at) && !depths.has(at); at = manifests.get(at)!.parent) {
      depths.set(at, 0);
      path.push(at);
    }
    let depth = depths.get(manifests.get(path.at(-1) ?? '')?.parent ?? '') ?? 0;
    for (const at of path.reverse()) depths.set(at, ++depth);
  }
  const deepest = [...manifests.keys()].sort((a, b) => depths.get(b)! - depths.get(a)!);
  const times = new Map(deepest.map(key => [key, used.get(key) ?? 0]));
  for (const key of deepest) {
    const { parent } = manifests.get(key)!;
    if (times.has(parent)) times.set(parent, Math.max(times.get(parent)!, times.get(key)!));
  }
  return deepest.sort((a, b) => times.get(a)! - times.get(b)!); // a stable sort: the deepest first among the same
}

/**
 * Names that belong to no manifest, and did not when this was asked before, a grace ago. A storage tells no item's age, and writers
 * may be under way: what is found is written down for the next who asks.
 */
async function orphans(
  items: Items,
  names: readonly string[],
  manifests: ReadonlyMap<string, Manifest>,
  holders: ReadonlyMap<string, number>
): Promise<string[]> {
  const isOrphan = (name: string): boolean =>
    name.startsWith('pages:') ? !holders.has(name) : name.startsWith('used:') && !manifests.has(name.slice('used:'.length));
  const found = names.filter(isOrphan);
  const before = noted(await items.read(ORPHANS));
  if (before && Date.now() - before.time < GRACE_MS) return [];
  const old = found.filter(name => before?.names.has(name));
  const young = found.filter(name => !before?.names.has(name));
  await items.write(ORPHANS, new TextEncoder().encode(JSON.stringify({ time: Date.now(), names: young })));
  return old;
}

/** What was written down; nothing where it is no such thing. */
function noted(bytes: Uint8Array | undefined): { readonly time: number; readonly names: ReadonlySet<string> } | undefined {
  try {
    const { time, names } = JSON.parse(new TextDecoder().decode(bytes));
    return typeof time === 'number' && Array.isArray(names) ? { time, names: new Set(names) } : undefined;
  } catch {
    return undefined;
  }
}

async function readAll<T>(keys: readonly string[], read: (key: string) => Promise<T | undefined>): Promise<Map<string, T>> {
  const found = await together(keys, read);
  return new Map(keys.flatMap((key, n) => (found[n] === undefined ? [] : [[key, found[n]] as const])));
}
