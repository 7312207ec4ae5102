// Workgroup memory of a pipeline, read off its shader: the sizes of its `var<workgroup>` declarations under the constants it was
// made with. Knows the types that shaders here use and throws at any other: a wrong number is never returned.

/** Bytes and alignment. */
const SCALARS: Readonly<Record<string, readonly [bytes: number, align: number]>> = {
  f32: [4, 4],
  u32: [4, 4],
  i32: [4, 4],
  vec2f: [8, 8],
  vec2u: [8, 8],
  vec2i: [8, 8],
  vec3f: [12, 16],
  vec3u: [12, 16],
  vec3i: [12, 16],
  vec4f: [16, 16],
  vec4u: [16, 16],
  vec4i: [16, 16],
  mat4x4f: [64, 16]
};

/** A constant or override by name, where it is a number. */
type Values = (name: string) => number | undefined;

/** Sum of the declarations' sizes, each rounded up to 16 bytes, as WebGPU counts them against maxComputeWorkgroupStorageSize. */
export function workgroupBytes(code: string, constants: Readonly<Record<string, number>>): number {
  const text = code.replace(/\/\/.*$/gm, '');
  const expressions = new Map<string, string | undefined>();
  for (const [, name, expression] of text.matchAll(/\b(?:const|override)\s+(\w+)\s*(?::\s*\w+\s*)?(?:=([^;]*))?;/g))
    expressions.set(name!, expression);
  // Declarations may stand in any order.
  const values: Values = name => {
    const given = constants[name];
    const expression = expressions.get(name);
    return given ?? (expression === undefined ? undefined : evaluate(expression, values));
  };
  let total = 0;
  for (const [, type] of text.matchAll(/\bvar\s*<\s*workgroup\s*>\s*\w+\s*:\s*([^;]+);/g)) {
    total += Math.ceil(sizeOf(type!.replace(/\s+/g, ''), values)[0] / 16) * 16;
  }
  return total;
}

function sizeOf(type: string, values: Values): readonly [bytes: number, align: number] {
  const scalar = SCALARS[type];
  if (scalar) return scalar;
  const atomic = /^atomic<(.*)>$/.exec(type);
  if (atomic) return sizeOf(atomic[1]!, values);
  const array = /^array<(.*)>$/.exec(type);
  const comma = topLevelComma(array?.[1] ?? '');
  if (!array || comma < 0) throw new Error(`workgroup type expected a scalar, vector or sized array of them, got ${type}`);
  const count = evaluate(array[1]!.slice(comma + 1), values);
  if (count === undefined) throw new Error(`workgroup array expected a size known from constants, got ${type}`);
  const [bytes, align] = sizeOf(array[1]!.slice(0, comma), values);
  return [count * Math.ceil(bytes / align) * align, align];
}

/** Where an array's element type ends. */
function topLevelComma(text: string): number {
  let depth = 0;
  for (let i = 0; i < text.length; i++) {
    if (text[i] === '<' || text[i] === '(') depth++;
    if (text[i] === '>' || text[i] === ')') depth--;
    if (text[i] === ',' && depth === 0) return i;
  }
  return -1;
}

/** Sums, products and shifts of whole numbers, min and max; undefined if a name has no value or there is anything else. */
function evaluate(expression: string, values: Values): number | undefined {
  const tokens = expression.match(/[A-Za-z_]\w*|\d+(?:\.\d+)?[uif]?|<<|>>|[^\s\w]/g) ?? [];
  let at = 0;
  const fail = (): never => {
    throw new SyntaxError();
  };
  const expect = (token: string): void => {
    if (tokens[at++] !== token) fail();
  };
  const unary = (): number => {
    const token = tokens[at++] ?? fail();
    if (token === '(') {
      const value = shift();
      expect(')');
      return value;
    }
    if (/^\d/.test(token)) return Number.parseFloat(token);
    if (tokens[at] === '(') {
      at++;
      const args = [shift()];
      while (tokens[at] === ',') {
        at++;
        args.push(shift());
      }
      expect(')');
      if (token === 'u32' || token === 'i32') return Math.trunc(args[0]!);
      if (token === 'min') return Math.min(...args);
      return token === 'max' ? Math.max(...args) : fail();
    }
    return values(token) ?? fail();
  };
  const product = (): number => {
    let value = unary();
    while (tokens[at] === '*' || tokens[at] === '/' || tokens[at] === '%') {
      const operator = tokens[at++];
      const right = unary();
      value = operator === '*' ? value * right : operator === '/' ? Math.trunc(value / right) : value % right;
    }
    return value;
  };
  const sum = (): number => {
    let value = product();
    while (tokens[at] === '+' || tokens[at] === '-') value = tokens[at++] === '+' ? value + product() : value - product();
    return value;
  };
  const shift = (): number => {
    let value = sum();
    while (tokens[at] === '<<' || tokens[at] === '>>') value = tokens[at++] === '<<' ? value * 2 ** sum() : Math.floor(value / 2 ** sum());
    return value;
  };
  try {
    const value = shift();
    return at === tokens.length ? value : undefined;
  } catch (error) {
    if (error instanceof SyntaxError) return undefined;
    throw error;
  }
}
