// Storages that processes share, and what they put there.

import { createStorage, type Storage } from 'unstorage';
import fsDriver from 'unstorage/drivers/fs';
import redisDriver, { type RedisOptions } from 'unstorage/drivers/redis';
import { idsOf } from './prompts.ts';

/** A storage in files of the folder `place`, or in the Redis server at the socket `place`. */
export function openShared(kind: string, place: string): Storage {
  const atSocket: RedisOptions & { path: string } = { path: place, retryStrategy: () => null }; // who is gone stays gone
  return createStorage({ driver: kind === 'Redis' ? redisDriver(atSocket) : fsDriver({ base: place }) });
}

const [one, two] = [idsOf(300, 1), idsOf(260, 2)];

/** Prompts, of which some begin alike. */
export const prompts: readonly (readonly number[])[] = [
  one,
  [...one.slice(0, 150), ...idsOf(100, 3)],
  [...one.slice(0, 200), ...idsOf(90, 4)],
  [...one, ...idsOf(200, 5)],
  two,
  [...two, ...idsOf(130, 6)],
  idsOf(140, 7)
];
