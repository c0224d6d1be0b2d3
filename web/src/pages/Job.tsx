import { Button, Card, CardContent, Skeleton, Stack, TextField, Typography } from "@mui/material";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { useNavigate, useParams } from "react-router";

import { useNews } from "../api/live";
import { api, data } from "../api/session";
import { useMe } from "../app/me";
import { Moment } from "../parts/Moment";
import { Page } from "../parts/Page";
import { Progress, Status } from "../parts/Status";
import { Trouble } from "../parts/Trouble";
import { useTexts } from "../texts";

const ACTIVE = ["queued", "running"];

/** One job, as it goes on: how far it is, what it says, and what can be done about it. */
export default function Job() {
  const { id = "" } = useParams();
  const { t } = useTexts();
  const { may } = useMe();
  const go = useNavigate();
  const queries = useQueryClient();
  const { news } = useNews(id);
  const [wanted, setWanted] = useState("");
  const path = { params: { path: { job_id: id } } };
  const job = useQuery({ queryKey: ["jobs", id], queryFn: async () => data(await api.GET("/api/v1/jobs/{job_id}", path)) });
  const active = ACTIVE.includes(news[id]?.status ?? job.data?.status ?? "queued");
  const lines = useQuery({
    queryKey: ["jobs", id, "log", active],
    queryFn: async () => data(await api.GET("/api/v1/jobs/{job_id}/logs", { params: { path: { job_id: id }, query: { order: "oldest", limit: 500 } } })).items,
    refetchInterval: active ? 3000 : false,
  });
  const cancel = useMutation({ mutationFn: () => api.POST("/api/v1/jobs/{job_id}/cancel", path), onSettled: () => queries.invalidateQueries({ queryKey: ["jobs"] }) });
  const again = useMutation({ mutationFn: async () => data(await api.POST("/api/v1/jobs/{job_id}/retry", path)), onSuccess: (made) => go(`/jobs/${made.id}`) });
  if (job.error) return <Trouble error={job.error} again={() => void job.refetch()} />;
  if (!job.data) return <Skeleton variant="rounded" height={200} />;
  const status = news[id]?.status ?? job.data.status;
  return (
    <Page
      title={job.data.title || job.data.type}
      actions={
        may("operator") && (
          <>
            {active && <Button color="warning" variant="outlined" disabled={cancel.isPending} onClick={() => { cancel.mutate(); }}>{t.cancel}</Button>}
            {!active && <Button variant="outlined" disabled={again.isPending} onClick={() => { again.mutate(); }}>{t.retry}</Button>}
          </>
        )
      }
    >
      <Trouble error={cancel.error ?? again.error} />
      <Card variant="outlined" sx={{ mb: 2 }}>
        <CardContent>
          <Stack spacing={1.5}>
            <Stack direction="row" spacing={2} sx={{ alignItems: "center" }}>
              <Status value={status} />
              <Typography variant="body2" color="text.secondary">
                {t.started} <Moment at={job.data.started_at} /> · {t.ended} <Moment at={job.data.completed_at} />
              </Typography>
            </Stack>
            {active && <Progress progress={news[id]?.progress ?? job.data.progress} />}
            {job.data.error && <Trouble error={new Error([job.data.error, job.data.hint].filter(Boolean).join(" – "))} />}
            <Typography variant="caption" color="text.secondary">{job.data.id}</Typography>
          </Stack>
        </CardContent>
      </Card>
      <Stack direction="row" sx={{ mb: 1, alignItems: "center", justifyContent: "space-between" }}>
        <Typography variant="h2">{t.log}</Typography>
        <TextField size="small" label={t.search} value={wanted} onChange={(event) => { setWanted(event.target.value); }} />
      </Stack>
      <Card variant="outlined">
        <Stack component="ol" sx={{ m: 0, p: 2, listStyle: "none", fontFamily: "monospace", fontSize: 13, maxHeight: 480, overflow: "auto" }}>
          {lines.data
            ?.filter((line) => line.message.toLowerCase().includes(wanted.toLowerCase()))
            .map((line) => (
              <Typography key={line.id} component="li" sx={{ font: "inherit", overflowWrap: "anywhere" }} color={line.level === "error" ? "error" : line.level === "warning" ? "warning.main" : "text.primary"}>
                {line.timestamp.slice(11, 19)} {line.message}
              </Typography>
            ))}
        </Stack>
      </Card>
    </Page>
  );
}
