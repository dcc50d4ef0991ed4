//! Positions with three axes: time, height and width (M-RoPE; Wang et al. 2024, arXiv 2409.12191, §2.1).

/// Time, height and width of a token.
pub type Position = [i64; 3];

/// The positions of one row.
///
/// Text counts on, all axes alike. A picture of `[rows, columns]` image tokens that starts at `p` stands at time `p`, height
/// `p + row` and width `p + column`, and the text behind it goes on at `p + max(rows, columns)`. Padding (a segment below 0)
/// is at 0. Rows of packed answers: each segment but 0 begins where segment 0 ended.
///
/// `pictures` are those of the row, in order. `None` where they do not fit the image tokens.
pub fn positions(
    ids: &[i64],
    segments: &[i64],
    image_token: u32,
    pictures: &mut impl Iterator<Item = [usize; 2]>,
) -> Option<Vec<Position>> {
    let mut out = vec![[0; 3]; ids.len()];
    // Where this segment goes on, and where segment 0 does.
    let (mut segment, mut next, mut shared) = (0, 0, 0);
    let mut at = 0;
    while at < ids.len() {
        if segments[at] < 0 {
            at += 1;
            continue;
        }
        if segments[at] != segment {
            (segment, next) = (segments[at], shared);
        }
        if ids[at] == i64::from(image_token) {
            let [rows, columns] = pictures.next()?;
            let places = at..at + rows * columns;
            let run = ids.get(places.clone())?;
            if run.is_empty() || run.iter().any(|id| *id != i64::from(image_token)) {
                return None;
            }
            for (place, position) in out[places.clone()].iter_mut().enumerate() {
                let (row, column) = ((place / columns) as i64, (place % columns) as i64);
                *position = [next, next + row, next + column];
            }
            (at, next) = (places.end, next + rows.max(columns) as i64);
        } else {
            out[at] = [next; 3];
            (at, next) = (at + 1, next + 1);
        }
        if segment == 0 {
            shared = next;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_stands_at_one_time_and_the_text_goes_on_behind_its_longer_edge() {
        let ids = [5, 9, 9, 9, 9, 9, 9, 6, 7];
        let of = |grid| positions(&ids, &[0; 9], 9, &mut [grid].into_iter());
        let picture = [[1, 1, 1], [1, 1, 2], [1, 1, 3], [1, 2, 1], [1, 2, 2], [1, 2, 3]];
        let expected = [&[[0; 3]], picture.as_slice(), &[[4; 3], [5; 3]]].concat();
        assert_eq!(of([2, 3]), Some(expected));
        assert_eq!((of([2, 4]), of([2, 2])), (None, None), "more and fewer than the image tokens");
    }

    #[test]
    fn both_answers_begin_where_the_prompt_ends() {
        let ids = [1, 9, 9, 9, 2, 3, 4, 5, 0];
        let segments = [0, 0, 0, 0, 1, 1, 2, 2, -1];
        let found = positions(&ids, &segments, 9, &mut [[1, 3]].into_iter()).expect("they fit");
        assert_eq!(found[4..], [[4; 3], [5; 3], [4; 3], [5; 3], [0; 3]]);
    }
}
