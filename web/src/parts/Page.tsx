import { Box, Stack, Typography } from "@mui/material";
import { type ReactNode, useEffect } from "react";

/** A page's heading with its actions, and what is on it. */
export function Page({ title, actions, children }: { title: string; actions?: ReactNode; children: ReactNode }) {
  useEffect(() => {
    document.title = `${title} · Lab Backup`;
  }, [title]);
  return (
    <Box>
      <Stack direction="row" spacing={2} useFlexGap sx={{ mb: 2, alignItems: "center", flexWrap: "wrap" }}>
        <Typography variant="h1" sx={{ flexGrow: 1 }}>
          {title}
        </Typography>
        {actions}
      </Stack>
      {children}
    </Box>
  );
}

/** What stands where there is nothing: why, and what to do. */
export function Empty({ text, action }: { text: string; action?: ReactNode }) {
  return (
    <Stack spacing={2} sx={{ py: 6, alignItems: "center", textAlign: "center" }}>
      <Typography color="text.secondary">{text}</Typography>
      {action}
    </Stack>
  );
}
