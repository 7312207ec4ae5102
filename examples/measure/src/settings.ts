// What is to be measured: as chosen on the page, narrowed by the address's query for those who look for something, and for tests.
import type { Plan } from './measurement.ts';
import { type BudgetName, budgets, type ModelName, methods, type Place, places } from './methods.ts';

/** By name, what of a plan an address may say: `?tokens=1024,8192&methods=f16,nsn2&places=webgpu&samples=101`. */
const KNOWN = ['tokens', 'methods', 'places', 'samples'] as const;
const TOKENS = [64, 131_072] as const;
const SAMPLES = [1, 1000] as const;

/** @throws {RangeError} where the query is not understood */
export function planOf(model: ModelName, budgetName: BudgetName, query: URLSearchParams): Plan {
  for (const name of query.keys()) {
    if (!KNOWN.some(known => known === name)) throw new RangeError(`The address's query expected ${KNOWN.join(', ')}, got "${name}"`);
  }
  const budget = budgets[budgetName];
  const list = (name: (typeof KNOWN)[number]): string[] | undefined => query.get(name)?.split(',');
  const chosen = list('methods');
  return {
    model,
    // Whoever asks for it by name gets it.
    software: query.get('places')?.includes('webgpu') ?? false,
    places: oneOfEach('places', list('places'), Object.keys(places) as Place[]),
    methods: methods.filter(({ name }) =>
      oneOfEach(
        'methods',
        chosen,
        methods.map(method => method.name)
      ).includes(name)
    ),
    budget: {
      tokens: list('tokens')?.map(text => integer('tokens', text, TOKENS)) ?? budget.tokens,
      samples: list('samples')?.map(text => integer('samples', text, SAMPLES))[0] ?? budget.samples,
      seconds: budget.seconds
    }
  };
}

function oneOfEach<T extends string>(name: string, given: readonly string[] | undefined, all: readonly T[]): readonly T[] {
  const unknown = given?.find(text => !all.some(known => known === text));
  if (unknown !== undefined) throw new RangeError(`"${name}" in the address expected ${all.join(', ')}, got "${unknown}"`);
  return given ? all.filter(known => given.includes(known)) : all;
}

function integer(name: string, text: string, [least, most]: readonly [number, number]): number {
  const value = Number(text);
  if (!Number.isInteger(value) || text.trim() === '' || value < least || value > most)
    throw new RangeError(`"${name}" in the address expected integers from ${least} to ${most}, got "${text}"`);
  return value;
}
