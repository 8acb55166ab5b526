package field

import "github.com/bailey-platform/bailey/settings"

// A Size is a number of bytes, written such as 512MiB or 2G. It is a flag's value too.
type Size = settings.Size

// A Duration is a time with its unit, such as 30s, 5m or 90d. "never" is one below 0,
// for settings where that has a meaning.
type Duration = settings.Duration
