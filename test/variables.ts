// What a lane tells the test file that it runs (lanes.ts): variables of the environment, or a page's query (browser/chromium.ts).

const globals = globalThis as { process?: NodeJS.Process };

/** A variable; empty where the lane has none of this name. */
export const variable = (name: string): string =>
  (globals.process ? globals.process.env[name] : new URLSearchParams(location.search).get(name)) ?? '';

/** Why this run is to do without a GPU; test/lanes.ts says so of lanes that have none, or repeat another. */
export const withoutGpu = variable('NSN_WITHOUT_WEBGPU');

/** Whether NSN_REQUIRE makes a missing device a failure. */
export const gpuRequired = withoutGpu === '' && /\b(webgpu|all)\b/.test(variable('NSN_REQUIRE'));

/** Whether another lane compiles every shape on a GPU: here each shader is to be met, and each of its branches, once. */
export const fewShapes = variable('NSN_FEW_SHAPES') !== '';

/** Names of backends that other lanes run the tests on. */
export const left: readonly string[] = variable('NSN_LEFT').split(',');
