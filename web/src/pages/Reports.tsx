import { Button, Paper, Stack, Table, TableBody, TableCell, TableContainer, TableHead, TableRow } from "@mui/material";
import { useMutation, useQuery } from "@tanstack/react-query";

import { api, data, Problem, type Schemas, token } from "../api/session";
import { Moment } from "../parts/Moment";
import { Empty, Page } from "../parts/Page";
import { Status } from "../parts/Status";
import { Trouble } from "../parts/Trouble";
import { useTexts } from "../texts";

/** Of every source whether it is protected as it should be; as a table, and as files. */
export default function Reports() {
  const { t } = useTexts();
  const rows = useQuery({ queryKey: ["status", "compliance"], queryFn: async () => data(await api.GET("/api/v1/reports/compliance")) as Schemas["ComplianceShown"][] });
  const fetchFile = useMutation({
    mutationFn: async (form: "csv" | "pdf") => {
      const answer = await fetch(`/api/v1/reports/compliance?format=${form}`, { headers: { Authorization: `Bearer ${await token()}` } });
      if (!answer.ok) throw new Problem(answer.status, answer.statusText);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await answer.blob());
      link.download = `compliance.${form}`;
      link.click();
      URL.revokeObjectURL(link.href);
    },
  });
  return (
    <Page title={t.reports} actions={<Stack direction="row" spacing={1}><Button variant="outlined" onClick={() => { fetchFile.mutate("csv"); }}>CSV</Button><Button variant="outlined" onClick={() => { fetchFile.mutate("pdf"); }}>PDF</Button></Stack>}>
      <Trouble error={rows.error ?? fetchFile.error} again={() => void rows.refetch()} />
      {rows.data?.length === 0 && <Empty text={t.noSources} />}
      {rows.data && rows.data.length > 0 && (
        <TableContainer component={Paper} variant="outlined">
          <Table size="small" aria-label={t.reports}>
            <TableHead>
              <TableRow>
                {[t.source, t.kind, t.host, t.protectedSources, t.lastBackup, t.verified, t.scheduled].map((title) => <TableCell key={title}>{title}</TableCell>)}
              </TableRow>
            </TableHead>
            <TableBody>
              {rows.data.map((row) => (
                <TableRow key={row.source_id}>
                  <TableCell>{row.name}</TableCell>
                  <TableCell>{row.source_type}</TableCell>
                  <TableCell>{row.host}</TableCell>
                  <TableCell><Status value={row.kept ? "complete" : "failed"} /></TableCell>
                  <TableCell><Moment at={row.last_backup} /></TableCell>
                  <TableCell><Moment at={row.last_verified} /></TableCell>
                  <TableCell>{row.scheduled ? t.yes : t.no}</TableCell>
                </TableRow>
              ))}
            </TableBody>
          </Table>
        </TableContainer>
      )}
    </Page>
  );
}
