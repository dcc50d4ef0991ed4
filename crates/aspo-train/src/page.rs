//! What every page that is written has in common: head, style, curves, marked sentences. Nothing is loaded from elsewhere.

use std::fmt::Write as _;

use base64::Engine;

const STYLE: &str = ":root{color-scheme:light dark;--line:#ddd;--faint:#6a6a6a;--fault:#a30;--blue:#dcecf8;--green:#e4f3dd}\
@media(prefers-color-scheme:dark){:root{--line:#444;--faint:#a5a5a5;--fault:#f97;--blue:#1d3a50;--green:#24401c}}\
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;overflow-wrap:anywhere}\
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid var(--line)}\
.wide{overflow-x:auto}table{border-collapse:collapse;overflow-wrap:normal}\
td,th{padding:.25em .8em;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}\
td:first-child,th:first-child{text-align:left}.facts td,.facts th{text-align:left;overflow-wrap:anywhere;min-width:7em}\
.curves{display:flex;flex-wrap:wrap;gap:1em}.curves figure{margin:0;flex:1 1 300px;max-width:350px}\
.curves svg{width:100%;height:auto;touch-action:pan-y}.curves text{fill:var(--faint)}.grid{stroke:var(--line)}\
.at{stroke:var(--faint);visibility:hidden}figcaption{font-size:.85em}figcaption span{display:inline-block}\
output{display:block;min-height:1.5em;white-space:pre-wrap;font-variant-numeric:tabular-nums}\
.picture{display:flex;flex-wrap:wrap;gap:1em;margin:1em 0;padding-top:1em;border-top:1px solid var(--line);align-items:flex-start}\
.picture>div:last-child{flex:1 1 20em;min-width:0}.picture img{display:block;width:144px;margin-bottom:.5em;\
border:1px solid var(--line)}p{margin:.3em 0}.said b{display:inline-block;min-width:5em;margin-right:.4em}\
.s,.a,.b{padding:.1em .15em;border-radius:3px}.a{background:var(--blue)}.b{background:var(--green)}\
.picture>div:empty{display:none}.small{image-rendering:pixelated}.bad{text-decoration:underline wavy var(--fault)}.note,.key{color:var(--faint);font-size:.85em}\
.masked{color:var(--faint);white-space:pre-wrap}.fault{color:var(--fault)}.other td{font-weight:600}\
.changed{outline:1px solid var(--faint)}.only .s:not(.changed){opacity:.25}.only .same{display:none}";

/// Values under the pointer, or at the step that the arrow keys go to; the box that leaves changed sentences.
const SCRIPT: &str = "for(const f of document.querySelectorAll('figure[data-lines]')){\
const lines=JSON.parse(f.dataset.lines),[x0,x1,left,right]=JSON.parse(f.dataset.range),svg=f.querySelector('svg'),\
bar=f.querySelector('.at'),out=f.querySelector('output'),steps=[...new Set(lines.flatMap(l=>l.points.map(p=>p[0])))].sort((a,b)=>a-b);\
let now=steps.length-1;const show=i=>{now=Math.max(0,Math.min(steps.length-1,i));const s=steps[now],\
x=left+(s-x0)/Math.max(x1-x0,1e-9)*(right-left);bar.setAttribute('x1',x);bar.setAttribute('x2',x);bar.style.visibility='visible';\
out.textContent='step '+s+lines.map(l=>{const p=l.points.find(p=>p[0]===s);return p?'\\n'+l.name+' '+p[1].toPrecision(4):''}).join('')};\
const near=e=>{const r=svg.getBoundingClientRect(),v=svg.viewBox.baseVal.width*(e.clientX-r.left)/r.width,\
s=x0+(v-left)/(right-left)*(x1-x0);let best=0;steps.forEach((t,i)=>{if(Math.abs(t-s)<Math.abs(steps[best]-s))best=i});show(best)};\
svg.addEventListener('pointermove',near);svg.addEventListener('pointerdown',near);\
svg.addEventListener('keydown',e=>{const d={ArrowLeft:-1,ArrowRight:1}[e.key];if(d){e.preventDefault();show(now+d)}})}\
for(const b of document.querySelectorAll('input[data-only]'))b.addEventListener('change',()=>\
document.body.classList.toggle('only',b.checked));";

/// A page of this body.
pub fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <link rel=icon href=\"data:,\"><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>{body}<script>{SCRIPT}</script></html>\n"
    )
}

/// A text for a page.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

/// An encoded picture as an element of a page.
pub fn embedded(image: &[u8]) -> String {
    let kind = match image.get(..4) {
        Some([0x89, b'P', b'N', b'G']) => "png",
        Some([0xff, 0xd8, ..]) => "jpeg",
        Some(b"GIF8") => "gif",
        Some([b'B', b'M', ..]) => "bmp",
        _ => "webp",
    };
    // Drawn ones: larger than life.
    let class = if image.len() < 4096 { "small" } else { "photo" };
    let data = base64::engine::general_purpose::STANDARD.encode(image);
    format!("<img class={class} alt=\"\" src=\"data:image/{kind};base64,{data}\">")
}

/// A table; its first row is the header.
pub fn table(heading: &str, rows: &[Vec<String>]) -> String {
    let mut html = format!("<h2>{}</h2><div class=wide><table>", escape(heading));
    for (index, row) in rows.iter().enumerate() {
        html += "<tr>";
        let tag = if index == 0 { "th" } else { "td" };
        row.iter().for_each(|cell| html += &format!("<{tag}>{}", escape(cell)));
    }
    html + "</table></div>"
}

/// A line of a chart: its name, and its points by step.
pub type Line = (String, Vec<(f64, f64)>);

/// A line chart as inline SVG, with the values under the pointer.
pub fn chart(heading: &str, lines: &[Line]) -> String {
    const WIDTH: f64 = 340.0;
    const HEIGHT: f64 = 180.0;
    const LEFT: f64 = 58.0;
    const RIGHT: f64 = WIDTH - 8.0;
    const BOTTOM: f64 = 22.0;
    const DASHES: [&str; 4] = ["none", "6 3", "2 2", "8 2 2 2"];
    let points = || lines.iter().flat_map(|(_, line)| line);
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (x0, x1) = range(&mut points().map(|p| p.0));
    let (mut y0, mut y1) = range(&mut points().map(|p| p.1));
    if y1 - y0 < 1e-9 {
        (y0, y1) = (y0 - 0.5, y1 + 0.5);
    }
    let x = |v: f64| LEFT + (v - x0) / (x1 - x0).max(1e-9) * (RIGHT - LEFT);
    let y = |v: f64| 8.0 + (y1 - v) / (y1 - y0) * (HEIGHT - BOTTOM - 8.0);
    let data: Vec<_> =
        lines.iter().map(|(name, points)| serde_json::json!({ "name": name, "points": points })).collect();
    let data = escape(&serde_json::Value::from(data).to_string());
    let heading = escape(heading);
    let mut html = format!(
        "<figure data-range=\"[{x0},{x1},{LEFT},{RIGHT}]\" data-lines=\"{data}\">\
         <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-size=10 role=img tabindex=0 aria-label=\"{heading}\">"
    );
    for part in 0..=4 {
        let value = y0 + (y1 - y0) * f64::from(part) / 4.0;
        let at = y(value);
        let _ = write!(
            html,
            "<line class=grid x1={LEFT} x2={WIDTH} y1={at:.1} y2={at:.1} /><text x={:.0} y={:.1} text-anchor=end>{}</text>",
            LEFT - 4.0,
            at + 3.0,
            number(value)
        );
    }
    let foot = HEIGHT - 6.0;
    let _ = write!(
        html,
        "<text x={LEFT} y={foot}>{x0:.0}</text><text x={WIDTH} y={foot} text-anchor=end>step {x1:.0}</text>\
         <line class=at y1=8 y2={} />",
        HEIGHT - BOTTOM
    );
    let mut key = String::new();
    for (index, (name, line)) in lines.iter().enumerate() {
        // Neighbours on the circle of hues are far apart, and dashes tell them apart without colours.
        let colour = format!("hsl({:.0} 65% 48%)", (210.0 + 137.5 * index as f64) % 360.0);
        let dash = DASHES[index % DASHES.len()];
        let path: Vec<String> = line.iter().map(|(a, b)| format!("{:.1},{:.1}", x(*a), y(*b))).collect();
        let stroke = format!("stroke=\"{colour}\" stroke-dasharray=\"{dash}\"");
        let _ = write!(html, "<polyline fill=none {stroke} stroke-width=1.5 points=\"{}\"/>", path.join(" "));
        let _ = write!(
            key,
            " <span><svg style=\"width:24px\" width=24 height=8 aria-hidden=true><path {stroke} stroke-width=2 d=\"M0 4h24\"/></svg> {}</span>",
            escape(name)
        );
    }
    html + &format!("</svg><figcaption><b>{heading}</b>{key}<output></output></figcaption></figure>")
}

pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
