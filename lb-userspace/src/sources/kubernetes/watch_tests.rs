use super::*;

#[test]
fn lists_that_must_be_confirmed() {
    for (known, listed, went_back, wanted) in [
        (0, 0, false, false),
        (1, 0, false, true),
        (7, 1, false, false),
        (8, 4, false, false),
        (8, 3, false, true),
        (8, 100, false, false),
        (8, 7, true, true),
    ] {
        assert_eq!(suspicion(known, listed, went_back), wanted, "{known} → {listed}");
    }
}
