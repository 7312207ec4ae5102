/** esbuild's "file" loader: the URL of the file beside the bundle. */
declare module '*.wasm' {
  const url: string;
  export default url;
}
