package oncelog

import "time"

// setDefault replaces a value that was not set.
func setDefault[T int | time.Duration](value *T, standard T) {
	if *value <= 0 {
		*value = standard
	}
}
