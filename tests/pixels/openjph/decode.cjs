// Decode HTJ2K codestreams by OpenJPH: `node decode.cjs MODULE FILE...` writes FILE.raw and prints
// one line of JSON for each: the frame's width, height, components, bits and sign.
const { readFileSync, writeFileSync } = require("node:fs");

const [path, ...files] = process.argv.slice(2);

require(path)().then((openjph) => {
  for (const file of files) {
    const data = readFileSync(file);
    const decoder = new openjph.HTJ2KDecoder();
    decoder.getEncodedBuffer(data.length).set(data);
    decoder.decode();
    const { width, height, componentCount, bitsPerSample, isSigned } = decoder.getFrameInfo();
    writeFileSync(`${file}.raw`, decoder.getDecodedBuffer());
    console.log(JSON.stringify({ width, height, componentCount, bitsPerSample, isSigned }));
    decoder.delete();
  }
});
