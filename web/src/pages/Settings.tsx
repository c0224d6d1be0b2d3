import { Box, Button, Card, CardContent, FormControlLabel, Stack, Switch, TextField, Typography } from "@mui/material";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";

import { api, data } from "../api/session";
import { useMe } from "../app/me";
import { bytes } from "../parts/format";
import { Moment } from "../parts/Moment";
import { Page } from "../parts/Page";
import { Status } from "../parts/Status";
import { Trouble } from "../parts/Trouble";
import { useTexts } from "../texts";

export default function Settings() {
  const { t } = useTexts();
  const { may } = useMe();
  const queries = useQueryClient();
  const [watcher, setWatcher] = useState<string>();
  const settings = useQuery({ queryKey: ["settings"], queryFn: async () => data(await api.GET("/api/v1/settings")) });
  const workers = useQuery({ queryKey: ["workers"], queryFn: async () => data(await api.GET("/api/v1/workers")), refetchInterval: 15_000 });
  const health = useQuery({ queryKey: ["health"], queryFn: async () => data(await api.GET("/api/v1/health/live")) });
  const done = () => queries.invalidateQueries({ queryKey: ["settings"] });
  const rest = useMutation({ mutationFn: (on: boolean) => api.PUT("/api/v1/maintenance", { body: { on, reason: "" } }), onSettled: done });
  const save = useMutation({ mutationFn: () => api.PUT("/api/v1/settings", { body: { heartbeat_url: watcher || null } as never }), onSettled: done });
  return (
    <Page title={t.settings}>
      <Trouble error={settings.error ?? rest.error ?? save.error ?? workers.error} />
      <Box sx={{ display: "grid", gap: 2, gridTemplateColumns: { xs: "1fr", lg: "repeat(2, 1fr)" } }}>
        <Card variant="outlined">
          <CardContent>
            <FormControlLabel control={<Switch disabled={!may("admin")} checked={settings.data?.maintenance ?? false} onChange={(event) => { rest.mutate(event.target.checked); }} />} label={t.maintenance} />
            <Stack direction="row" spacing={1} sx={{ mt: 2 }}>
              <TextField fullWidth size="small" label="Heartbeat URL" disabled={!may("admin")} value={watcher ?? settings.data?.heartbeat_url ?? ""} onChange={(event) => { setWatcher(event.target.value); }} />
              {may("admin") && <Button disabled={watcher === undefined || save.isPending} onClick={() => { save.mutate(); }}>{t.save}</Button>}
            </Stack>
            <Typography variant="body2" color="text.secondary" sx={{ mt: 2 }}>{t.version} {health.data?.version}</Typography>
          </CardContent>
        </Card>
        <Card variant="outlined">
          <CardContent>
            <Typography variant="h2" sx={{ mb: 1 }}>{t.workers}</Typography>
            <Stack spacing={1}>
              {workers.data?.map((row) => (
                <Stack key={row.name} direction="row" spacing={2} sx={{ alignItems: "center", justifyContent: "space-between" }}>
                  <Box>
                    <Typography variant="body2">{row.name} · {row.version}</Typography>
                    <Typography variant="caption" color="text.secondary">
                      {typeof row.figures.load === "number" ? row.figures.load : ""} · {bytes(row.figures.memory_available as number | undefined)} · <Moment at={row.seen_at} />
                    </Typography>
                  </Box>
                  <Status value={row.alive && row.same_version ? "running" : "failed"} />
                </Stack>
              ))}
            </Stack>
          </CardContent>
        </Card>
      </Box>
    </Page>
  );
}
