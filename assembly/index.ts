// What the binaries export.

export { attend } from "./attend";
export { buildGrid } from "./cells";
export { decode } from "./decode";
export { encode } from "./encode";
export { hadamard } from "./hadamard";
export { addKeyEnergies, addQueryEnergies } from "./learn";
export { divide, norms } from "./normalize";
export { decodePage, encodePage } from "./page";
export { quantize } from "./quantize";
export { copyRows } from "./rows";
export { rtn } from "./rtn";
export { bucketsBegin, callRows, itemBytes, rawBytes, scratchBytes, shapeBytes, statesBytes, staticEnd, tablesBegin, tablesEnd,
  tileBytes } from "./scratch";
export { addMean, mean } from "./shift";
export { rowsFromTile, tileFromRows } from "./tile";
export { mix, scores } from "./verbs";
