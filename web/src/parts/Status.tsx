import { Chip, LinearProgress, Stack, Typography } from "@mui/material";

import type { News } from "../api/live";
import { bytes, duration } from "./format";

type Colour = "default" | "success" | "warning" | "error" | "info";
const COLOURS: Record<string, Colour> = {
  succeeded: "success", complete: "success", "succeeded with warnings": "warning", failed: "error", damaged: "error", interrupted: "warning",
  running: "info", paused: "warning", exited: "default", queued: "default", cancelled: "default", deleted: "default",
};

/** A state as a word with a colour; the word alone says it all. */
export function Status({ value }: { value: string }) {
  return <Chip size="small" variant="outlined" color={COLOURS[value] ?? "default"} label={value} />;
}

/** How far a job is. */
export function Progress({ progress }: { progress: News["progress"] }) {
  if (!progress?.phase) return null;
  const { phase, done = 0, total, rate, eta } = progress;
  const share = total ? Math.min(100, (100 * done) / total) : undefined;
  const words = [
    phase,
    total ? `${bytes(done)} / ${bytes(total)}` : done ? bytes(done) : "",
    rate ? `${bytes(rate)}/s` : "",
    eta ? duration(eta) : "",
  ];
  return (
    <Stack spacing={0.5} sx={{ minWidth: 180 }}>
      <LinearProgress
        aria-label={phase}
        variant={share === undefined ? "indeterminate" : "determinate"}
        {...(share === undefined ? {} : { value: share })}
      />
      <Typography variant="caption" color="text.secondary">
        {words.filter(Boolean).join(" · ")}
      </Typography>
    </Stack>
  );
}
