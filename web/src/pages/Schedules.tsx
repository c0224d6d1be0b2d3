import { Button, Checkbox, Dialog, DialogActions, DialogContent, DialogTitle, FormControlLabel, MenuItem, Stack, TextField, Typography } from "@mui/material";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { useNavigate } from "react-router";

import { api, data, type Schemas } from "../api/session";
import { useMe } from "../app/me";
import { local } from "../parts/format";
import { List } from "../parts/List";
import { Empty, Page } from "../parts/Page";
import { Trouble } from "../parts/Trouble";
import { useTexts } from "../texts";

type Schedule = Schemas["ScheduleShown"];

/** When what is backed up, and what of it is kept. */
export default function Schedules() {
  const { t, language } = useTexts();
  const { may } = useMe();
  const go = useNavigate();
  const [adding, setAdding] = useState(false);
  const [looking, setLooking] = useState<Schedule>();
  const run = useMutation({
    mutationFn: async (id: string) => data(await api.POST("/api/v1/schedules/{schedule_id}/run", { params: { path: { schedule_id: id } } })),
    onSuccess: (job) => go(`/jobs/${job.id}`),
  });
  return (
    <Page title={t.schedules} actions={may("operator") && <Button variant="contained" onClick={() => { setAdding(true); }}>{t.add}</Button>}>
      <Trouble error={run.error} />
      <List<Schedule>
        label={t.schedules}
        name={["schedules"]}
        load={async (cursor) => data(await api.GET("/api/v1/schedules", { params: { query: cursor ? { cursor } : {} } }))}
        empty={<Empty text={t.noSchedules} action={may("operator") && <Button variant="outlined" onClick={() => { setAdding(true); }}>{t.add}</Button>} />}
        columns={[
          { title: t.name, cell: (row) => row.name },
          { title: t.covers, wide: true, cell: (row) => (row.source_tag ? `tag ${row.source_tag}` : row.source_type.replace("_", " ")) },
          { title: t.cron, cell: (row) => <code>{row.cron_expression}</code> },
          { title: t.keep, wide: true, cell: (row) => kept(row.retention_config) },
          { title: t.enabled, wide: true, cell: (row) => (row.enabled ? t.yes : t.no) },
          {
            title: "",
            numeric: true,
            cell: (row) => (
              <>
                <Button size="small" onClick={() => { setLooking(row); }}>{t.next}</Button>
                {may("operator") && <Button size="small" onClick={() => { run.mutate(row.id); }}>{t.run}</Button>}
              </>
            ),
          },
        ]}
      />
      {looking && <Preview schedule={looking} language={language} close={() => { setLooking(undefined); }} />}
      {adding && <Add close={() => { setAdding(false); }} />}
    </Page>
  );
}

function kept(rules: Schemas["Retention"]): string {
  return Object.entries(rules).filter(([, count]) => count > 0).map(([name, count]) => `${count} ${name}`).join(", ");
}

function Preview({ schedule, language, close }: { schedule: Schedule; language: string; close: () => void }) {
  const { t } = useTexts();
  const preview = useQuery({ queryKey: ["preview", schedule.id], queryFn: async () => data(await api.GET("/api/v1/schedules/{schedule_id}/preview", { params: { path: { schedule_id: schedule.id }, query: { count: 5 } } })) });
  return (
    <Dialog open onClose={close} fullWidth maxWidth="sm">
      <DialogTitle>{schedule.name}</DialogTitle>
      <DialogContent>
        <Trouble error={preview.error} />
        <Typography variant="h2">{t.next}</Typography>
        <ul>{preview.data?.next_runs.map((run) => <li key={run}>{local(run, language)}</li>)}</ul>
        <Typography variant="h2">{t.covers}</Typography>
        <ul>{preview.data?.sources.map((source) => <li key={source}>{source}</li>)}</ul>
        <Typography variant="h2">{t.keep}</Typography>
        <ul>
          {preview.data?.retention.slice(0, 30).map((row) => (
            <li key={row.backup}>{local(row.completed_at, language)} {row.source_name}: {row.kept ? t.keep : t.delete} ({row.reasons.join(", ")})</li>
          ))}
        </ul>
      </DialogContent>
      <DialogActions><Button onClick={close}>{t.close}</Button></DialogActions>
    </Dialog>
  );
}

function Add({ close }: { close: () => void }) {
  const { t } = useTexts();
  const queries = useQueryClient();
  const [name, setName] = useState("");
  const [cron, setCron] = useState("30 2 * * *");
  const [source, setSource] = useState("all");
  const [storage, setStorage] = useState("");
  const [verify, setVerify] = useState(false);
  const [rules, setRules] = useState({ last: 0, hourly: 0, daily: 7, weekly: 4, monthly: 12, yearly: 5 });
  const storages = useQuery({ queryKey: ["storage"], queryFn: async () => data(await api.GET("/api/v1/storage", { params: { query: { limit: 100 } } })).items });
  const sources = useQuery({ queryKey: ["status"], queryFn: async () => data(await api.GET("/api/v1/reports/backup-status")) as Schemas["ProtectionShown"][] });
  const chosen = storage || (storages.data?.[0]?.id ?? "");
  const add = useMutation({
    mutationFn: () => {
      const [kind, id] = source.split("/");
      return api.POST("/api/v1/schedules", {
        body: {
          name,
          source_type: kind as Schedule["source_type"],
          ...(id ? { source_id: id } : {}),
          cron_expression: cron,
          timezone: Intl.DateTimeFormat().resolvedOptions().timeZone,
          retention_config: rules,
          storage_backend_id: chosen,
          enabled: true,
          verify_after: verify,
          jitter_seconds: 0,
        },
      });
    },
    onSuccess: async () => {
      await queries.invalidateQueries({ queryKey: ["schedules"] });
      close();
    },
  });
  const rule = (key: "daily" | "weekly" | "monthly" | "yearly", label: string) => (
    <TextField type="number" size="small" margin="dense" label={label} value={rules[key]} slotProps={{ htmlInput: { min: 0, max: 1000 } }} onChange={(event) => { setRules({ ...rules, [key]: Math.max(0, Number(event.target.value)) }); }} />
  );
  return (
    <Dialog open onClose={close} fullWidth maxWidth="sm">
      <DialogTitle>{t.schedules}: {t.add}</DialogTitle>
      <DialogContent>
        <TextField fullWidth required autoFocus margin="dense" label={t.name} value={name} onChange={(event) => { setName(event.target.value); }} />
        <TextField select fullWidth margin="dense" label={t.covers} value={source} onChange={(event) => { setSource(event.target.value); }}>
          <MenuItem value="all">{t.all}</MenuItem>
          {sources.data?.map((row) => <MenuItem key={row.source_id} value={`${row.source_type}/${row.source_id}`}>{row.name} ({row.source_type})</MenuItem>)}
        </TextField>
        <TextField fullWidth required margin="dense" label={t.cron} value={cron} helperText={Intl.DateTimeFormat().resolvedOptions().timeZone} onChange={(event) => { setCron(event.target.value); }} />
        <TextField select fullWidth margin="dense" label={t.storage} value={chosen} onChange={(event) => { setStorage(event.target.value); }}>
          {(storages.data ?? []).map((row) => <MenuItem key={row.id} value={row.id}>{row.name}</MenuItem>)}
        </TextField>
        <Stack direction="row" spacing={1} useFlexGap sx={{ flexWrap: "wrap" }}>
          {rule("daily", t.daily)}{rule("weekly", t.weekly)}{rule("monthly", t.monthly)}{rule("yearly", t.yearly)}
        </Stack>
        <FormControlLabel control={<Checkbox checked={verify} onChange={(event) => { setVerify(event.target.checked); }} />} label={t.verifyAfter} />
        <Trouble error={add.error ?? storages.error} />
      </DialogContent>
      <DialogActions>
        <Button onClick={close}>{t.close}</Button>
        <Button variant="contained" disabled={!name || !chosen || add.isPending} onClick={() => { add.mutate(); }}>{t.add}</Button>
      </DialogActions>
    </Dialog>
  );
}
