import { Alert, AlertTitle, Button } from "@mui/material";

import { Problem } from "../api/session";
import { useTexts } from "../texts";

/** An error with its cause and what to do next. */
export function Trouble({ error, again }: { error: unknown; again?: () => void }) {
  const { t } = useTexts();
  if (!error) return null;
  const problem = error instanceof Problem ? error : new Problem(0, error instanceof Error ? error.message : t.problem);
  return (
    <Alert
      severity="error"
      sx={{ my: 2 }}
      action={
        again ? (
          <Button color="inherit" size="small" onClick={again}>
            {t.tryAgain}
          </Button>
        ) : undefined
      }
    >
      <AlertTitle>{problem.message}</AlertTitle>
      {problem.hint}
    </Alert>
  );
}
