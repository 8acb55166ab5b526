import { register } from "node:module";

const resolve = `export async function resolve(name, context, next) {
  if (name === "fs" && context.parentURL?.includes("/conformance/dist/")) {
    return { url: ${JSON.stringify(new URL("fs.mjs", import.meta.url).href)}, shortCircuit: true };
  }
  return next(name, context);
}`;
register("data:text/javascript," + encodeURIComponent(resolve));
