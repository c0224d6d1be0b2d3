// The lock file names versions and checksums, and no addresses: packages come from whatever registry the user has.
// npm's own option for that (omit-lockfile-registry-resolved) leaves out optional packages of other platforms too.
import { readFileSync, writeFileSync } from "node:fs";

const lock = JSON.parse(readFileSync("package-lock.json", "utf8"));
for (const each of Object.values(lock.packages)) delete each.resolved;
writeFileSync("package-lock.json", `${JSON.stringify(lock, null, 2)}\n`);
