import { useTexts } from "../texts";
import { ago, local } from "./format";

/** A moment: how long ago it is, with the exact time (ISO 8601) for who points at it. */
export function Moment({ at, exact = false }: { at: string | null | undefined; exact?: boolean }) {
  const { t, language } = useTexts();
  if (!at) return <>{t.never}</>;
  return (
    <time dateTime={at} title={at}>
      {exact ? local(at, language) : ago(at, language)}
    </time>
  );
}
